"""The models of one gateway by the names they are served under: found, loaded, and let go of."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...backends.checkpoints.default_model import DEFAULT_ID, is_default
from ...backends.checkpoints.quantised.at_load import bits_of, quantised_id
from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from ...protos.loading import LoadRequest
from ..config import DTYPES, GatewayConfig, WorkerConfig, choose_backend
from ..model_names import default_id, parsed
from .workers import Worker

__all__ = ["Roster"]


class Roster:
    """Model id → worker. Used by the event loop alone: what is checked here is kept before anybody else can look."""

    def __init__(self, config: GatewayConfig, on_restart: Callable[[str], None]) -> None:
        """`on_restart` is told the id of a model whose worker died and is started anew."""
        self.workers: dict[str, Worker] = {}
        self.closing = False
        """The server is shutting down: nothing more is found or loaded."""
        self.folder = _runtime_folder()
        """Of the workers' sockets, gone with the gateway."""
        self._config, self._on_restart = config, on_restart
        self._folders = 0

    def find(self, model: str) -> Worker:
        """The worker of a model; empty: the only one. Raises, naming the models there are and the fix."""
        live = {name: worker for name, worker in self.workers.items() if not worker.never_loaded} or self.workers
        names = ", ".join(live)
        if self.closing:
            raise Unavailable("the server is shutting down")
        if model:
            if model not in self.workers:
                raise NotFound(f"no model {model!r} is loaded; loaded: {names or 'none'}; load it first")
            return self.workers[model]
        if not self.workers:
            raise FailedPrecondition("no model is loaded; load one first (`probewire serve MODEL`, or the Load call)")
        if len(live) > 1:
            raise InvalidArgument(f"several models are loaded, so the request must name one of: {names}")
        return next(iter(live.values()))

    def id_for(self, request: LoadRequest) -> str:
        """The id that a load would have its model served under; its parts are in their own fields.

        One that is served from one backend already has the backend in its name on another, as `probewire serve` names it.
        """
        if request.id:
            return request.id
        name = quantised_id(default_id(request.model), request.quantize)
        if request.backend != "auto":
            apart, beside = f"{name}@{request.backend}", self.workers.get(name)
            same = beside is not None and beside.config.model == _checkpoint(request)
            if apart in self.workers or (beside is not None and same and beside.config.backend != request.backend):
                return apart
        return name

    def join(self, request: LoadRequest, state_dir: Path) -> Worker:
        """The worker that a load is about, started if there is none. Raises before anything starts."""
        config = self._worker_config(parsed(request), state_dir)
        found = self.workers.get(config.id)
        if found is not None and found.state != "failed":
            if found.state == "stopping":
                raise Unavailable(f"model {config.id!r} is being unloaded; retry", retry_after_s=2.0)
            if found.config == config:
                found.wake()
                return found
            what = ", ".join(filter(None, (found.config.backend, found.config.dtype, found.config.quantize)))
            raise FailedPrecondition(
                f"id {config.id!r} is taken by {found.config.model!r} ({what}); unload that first, or give this one another id"
            )
        if self.closing:
            raise Unavailable("the server is shutting down")
        n_loaded = sum(not worker.never_loaded for worker in self.workers.values())
        if (found is None or found.never_loaded) and n_loaded >= self._config.max_models:
            raise ResourceExhausted(f"{n_loaded} models are loaded, the most allowed; unload one first")
        worker = Worker(
            config, self._config.supervision, self._new_folder, on_restart=lambda: self._on_restart(config.id)
        )
        self.workers[config.id] = worker
        worker.start()
        return worker

    def forget(self, worker: Worker) -> None:
        """Take one off the list, unless another has its name by now."""
        if self.workers.get(worker.config.id) is worker:
            del self.workers[worker.config.id]

    def _worker_config(self, request: LoadRequest, state_dir: Path) -> WorkerConfig:
        base = self._config.worker
        if request.dtype not in DTYPES:
            raise InvalidArgument(f"unknown dtype {request.dtype!r}; allowed: {', '.join(DTYPES)}")
        if request.quantize:
            bits_of(request.quantize)
        name = self.id_for(request)
        if len(name) > 200 or not name.isprintable():
            raise InvalidArgument(f"a model id has at most 200 printable characters, got {name[:220]!r}")
        return replace(
            base,
            model=_checkpoint(request),
            id=name,
            backend=choose_backend(base.backend if request.backend == "auto" else request.backend),
            dtype=base.dtype if request.dtype == "auto" else request.dtype,
            quantize=request.quantize,
            revision=request.revision or base.revision,
            state_dir=str(state_dir),
        )

    def _new_folder(self) -> Path:
        """A folder for one socket. Where a cleaner of /tmp has taken ours away, and maybe another user has made it, anew."""
        try:
            ours = self.folder.stat().st_uid == os.getuid()
        except FileNotFoundError:
            ours = False
        if not ours:
            self.folder = _runtime_folder()
        folder = self.folder / str(self._folders)
        self._folders += 1
        folder.mkdir(mode=0o700)
        return folder

    def remove_folder(self) -> None:
        """Once no worker is left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _checkpoint(request: LoadRequest) -> str:
    return DEFAULT_ID if is_default(request.model) else request.model


def _runtime_folder() -> Path:
    short = Path("/tmp")  # noqa: S108  socket paths have at most 104 characters, and TMPDIR may be longer
    return Path(tempfile.mkdtemp(prefix="probewire-", dir=short if short.is_dir() else None))
