"""One model in this process: its scheduler, tokenizer and stored captures, as the operations that a worker serves."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backends import free_bytes, load_backend
from ..backends.base import Backend
from ..backends.checkpoints import resolve_model
from ..backends.footprint import check_room
from ..backends.saes import Shelf
from ..backends.tokenizer import Tokenizer
from ..protos.activity import ActivityReport, ModelActivity, WorkerStatus
from ..protos.errors import Internal, InvalidArgument, NotFound, ProbewireError, Unavailable, Unsupported
from ..protos.gradients import GradientsRequest
from ..protos.loading import HealthReport, LoadProgress, LoadRequest
from ..protos.model import (
    Event,
    GenerateRequest,
    Input,
    ModelInfo,
    RunRequest,
    StoredCapture,
    Tokenized,
    TokenizeRequest,
)
from ..protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ..protos.service import InferenceRequest
from ..protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..protos.spec import Plan
from ..protos.sweeps import SweepRequest
from ..protos.tensors import Tensor
from .callers import Caller, current_caller
from .capture_store import CaptureStore
from .config import WorkerConfig
from .delivery import Job
from .live import LiveSessions, check_session_plan
from .measuring import prepare_gradients, prepare_sweep
from .prepared import Prepared
from .requests import prepare_generate, prepare_run
from .sae_loading import load_sae
from .sae_store import SaeStore
from .scheduler import Scheduler
from .sinks import AsyncSink
from .state import State

__all__ = ["LocalModel", "LocalOperations"]


LAST_WORDS_S = 0.5

MAX_TOKENIZE_CHARS = 4 << 20

PROBE_PATIENCE_S = 15.0
"""How long a probe waits for the model's thread before it asks what that thread is doing."""
LONGEST_FORWARD_S = 600.0
"""A single forward that takes longer counts as hung."""


class LocalModel:
    """A loaded model and the thread that owns it. The parts that both faces below share."""

    def __init__(
        self,
        config: WorkerConfig,
        folder: Path,
        *,
        model_hash: str = "",
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.config = config

        def build() -> Backend:
            return load_backend(
                config.backend,
                folder,
                model_id=config.id,
                model_hash=model_hash,
                dtype=config.dtype,
                device=config.device,
                limits=config.engine,
            )

        self.scheduler = Scheduler(build, config.limits, on_death)
        self.backend = self.scheduler.start()
        self.tokenizer = Tokenizer(folder, self.backend.info.vocab_size)
        self.info: ModelInfo = replace(self.backend.info, chat_template=self.tokenizer.has_chat_template)
        self.sessions = LiveSessions()
        self.state, self._own_folder = self._open_state()
        self.store = CaptureStore(self.state, max_bytes=config.limits.max_store_bytes, ttl_s=config.limits.store_ttl_s)
        self.saes = SaeStore(
            self.state,
            max_bytes=config.limits.max_sae_bytes,
            max_saes=config.limits.max_saes,
            max_all_bytes=config.limits.max_store_bytes,
        )

    def _open_state(self) -> tuple[State, tempfile.TemporaryDirectory[str] | None]:
        """The gateway's state folder; in process, one of our own that goes when we do."""
        if self.config.state_dir:
            return State(Path(self.config.state_dir)), None
        folder = tempfile.TemporaryDirectory(prefix="probewire-state-")
        return State(Path(folder.name)), folder

    def submit(self, request: InferenceRequest, sink: Any, caller: Caller) -> Job:
        """Check a request and queue it. Raises before anything runs."""
        self.check_model(request.model)
        prepared = self._prepare(request, caller)
        owner = caller.user
        reservation = self.store.reserve(owner.name, prepared.store_bytes, owner.limits.store_bytes)
        job = Job(
            prepared,
            caller,
            sink,
            self.tokenizer,
            self.store,
            sessions=self.sessions,
            reservation=reservation,
            thread=self.scheduler,
            prepare_again=lambda: self._prepare(request, caller),
        )
        try:
            self.scheduler.submit(job)
        except BaseException:
            self.store.release(reservation)
            raise
        return job

    def _prepare(self, request: InferenceRequest, caller: Caller) -> Prepared:
        parts = (self.backend, self.tokenizer, self.config.limits, self._shelf(caller))
        if isinstance(request, RunRequest):
            return prepare_run(request, *parts, request_id=caller.request_id)
        if isinstance(request, GradientsRequest):
            return prepare_gradients(request, *parts, request_id=caller.request_id)
        if isinstance(request, SweepRequest):
            return prepare_sweep(request, *parts, request_id=caller.request_id)
        session = self.sessions.get(caller.user.name, request.session) if request.session else None
        return prepare_generate(request, *parts, request_id=caller.request_id, session=session)

    def _shelf(self, caller: Caller) -> Shelf:
        return Shelf(self.store.of(caller.user.name), self.saes.of(caller.user, self.info))

    def put_session(self, session: Session, caller: Caller) -> None:
        """Take a session or its next revision, for generations under way from their next step on."""
        check_session_plan(session.plan, self.backend, self._shelf(caller))  # here: an SAE may have to be read

        def put() -> None:
            self.sessions.put(caller.user.name, session, self.scheduler.jobs, self.backend)

        self.scheduler.call(put)

    def load_sae(self, request: LoadSaeRequest, caller: Caller) -> SaeInfo:
        """Load an SAE onto a site of this model."""
        self.check_model(request.model)
        return load_sae(request, caller.user, self.info, self.saes, self.config.sae_folders)

    def status(self) -> WorkerStatus:
        """The engine and the queue as they are now, read between steps."""
        return replace(self.scheduler.status(), store_bytes=self.store.used_bytes())

    def check_model(self, model: str) -> None:
        """Raise NotFound unless the name means this model."""
        if model not in ("", self.info.id):
            raise NotFound(f"no model {model!r} here; loaded: {self.info.id}")

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Token ids and texts of an input. Raises InvalidArgument for a text that takes seconds to tokenize."""
        self.check_model(request.model)
        messages = request.input.messages or ()
        length = len(request.input.text or "") + sum(len(message.content) for message in messages)
        if length > MAX_TOKENIZE_CHARS:
            raise InvalidArgument(f"a text to tokenize has at most {MAX_TOKENIZE_CHARS:,} characters, got {length:,}")
        ids = self.tokenizer.encode(request.input)
        return Tokenized(tuple(ids), tuple(self.tokenizer.tokens(ids)), self.tokenizer.decode(ids))

    def probe(self) -> HealthReport:
        """Run a real forward between two steps; while a step or run is under way, that it moves is the answer."""
        prepared = prepare_run(
            RunRequest((Input(token_ids=(0,)),), plan=Plan()),
            *(self.backend, self.tokenizer, self.config.limits, Shelf()),
            request_id="probe",
        )
        sequences = [item.sequence for item in prepared.inputs if item.sequence is not None]
        try:
            finished = self.scheduler.call(lambda: self.backend.run(sequences), give_up_s=PROBE_PATIENCE_S)
        except ProbewireError as error:
            return HealthReport(False, error.message, {self.info.id: f"failed: {error.message}"})
        if finished is None:
            return self._busy()
        return HealthReport(True, "a forward ran", {self.info.id: "ready"})

    def _busy(self) -> HealthReport:
        """The model's thread did not come to the probe: well, as long as its forward is not past all bounds."""
        busy_s = self.scheduler.busy_s
        ready = busy_s < LONGEST_FORWARD_S
        state = f"busy: one forward has taken {busy_s:.0f} s so far"
        return HealthReport(ready, state, {self.info.id: "ready" if ready else f"failed: {state}"})

    def close(self) -> None:
        """End everything."""
        self.scheduler.close()
        self.store.close()
        self.state.close()
        if self._own_folder is not None:
            self._own_folder.cleanup()


class LocalOperations:
    """`Operations` over one model: what a worker serves."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._one_load = asyncio.Lock()

    @classmethod
    async def create(cls, config: WorkerConfig, report: Any) -> LocalOperations:
        """Find the checkpoint, see that it fits, load it, check it. `report(stage, done, total)` says how far it is."""

        def work() -> LocalModel:
            checkpoint = resolve_model(
                config.model,
                revision=config.revision or None,
                cache_dir=Path(config.cache_dir) if config.cache_dir else None,
                progress=lambda p: report(p.stage, p.done, p.total),
            )
            check_room(
                checkpoint.folder, config.model, config.dtype, config.engine, free_bytes(config.backend, config.device)
            )
            report("load", 0, 0)
            model = LocalModel(config, checkpoint.folder, model_hash=checkpoint.model_hash, on_death=_end_worker)
            report("check", 0, 0)
            health = model.probe()
            if not health.ready:
                raise Internal(f"the model was loaded, but its first forward failed: {health.detail}")
            return model

        return cls(await asyncio.to_thread(work))

    async def _stream(self, request: InferenceRequest) -> AsyncIterator[list[Event]]:
        sink = AsyncSink(self._model.scheduler)
        submitted = asyncio.ensure_future(asyncio.to_thread(self._model.submit, request, sink, current_caller()))
        try:
            job = await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the thread goes on, and queues a request whose caller has left
            submitted.add_done_callback(self._drop_unwanted)
            raise
        try:
            async for events in sink.events():
                yield events
        finally:
            self._model.scheduler.cancel(job)

    def _drop_unwanted(self, submitted: asyncio.Future[Job]) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._model.scheduler.cancel(submitted.result())

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
        return self._stream(request)

    def gradients(self, request: GradientsRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
        return self._stream(request)

    def sweep(self, request: SweepRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
        return self._stream(request)

    def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
        return self._stream(request)

    async def models(self) -> list[ModelInfo]:
        """See Operations."""
        return [self._model.info]

    async def describe(self, model: str) -> ModelInfo:
        """See Operations."""
        self._model.check_model(model)
        return self._model.info

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """A worker has one model."""
        raise Unsupported("a worker serves one model; load others through the gateway")
        yield  # pragma: no cover - makes this an async generator

    async def unload(self, model: str) -> None:
        """See Operations."""
        raise Unsupported("a worker ends with its gateway; unload through the gateway")

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """See Operations."""
        return await asyncio.to_thread(self._model.tokenize, request)

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        """See Operations."""
        self._model.check_model(model)
        return dict(self._model.backend.weight_names())

    async def weights(self, name: str, model: str) -> Tensor:
        """See Operations."""
        self._model.check_model(model)
        return Tensor.of(await asyncio.to_thread(self._model.backend.weight, name))

    async def captures(self, model: str) -> list[StoredCapture]:
        """See Operations."""
        self._model.check_model(model)
        return self._model.store.list(_owner())

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        """See Operations."""
        self._model.check_model(model)
        return self._model.store.get_item(_owner(), capture_id)

    async def delete_capture(self, capture_id: str, model: str) -> None:
        """See Operations."""
        self._model.check_model(model)
        self._model.store.delete(_owner(), capture_id)

    async def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        """See Operations."""
        async with self._one_load:  # each holds an SAE twice, and threads that requests are checked on
            return await asyncio.to_thread(self._model.load_sae, request, current_caller())

    async def send_sae(self, part: SaePart) -> SaeReceived:
        """See Operations."""
        return await asyncio.to_thread(self._model.saes.receive, current_caller().user, part)

    async def saes(self, model: str) -> list[SaeInfo]:
        """See Operations."""
        self._model.check_model(model)
        return self._model.saes.list(current_caller().user, self._model.info.id)

    async def unload_sae(self, name: str, model: str) -> None:
        """See Operations."""
        self._model.check_model(model)
        self._model.saes.delete(current_caller().user, name, self._model.info.id)

    async def create_session(self, request: CreateSessionRequest) -> Session:
        """See Operations."""
        raise _kept_by_the_gateway()

    async def update_session(self, request: UpdateSessionRequest) -> Session:
        """See Operations."""
        raise _kept_by_the_gateway()

    async def session(self, session_id: str) -> Session:
        """See Operations."""
        return self._model.sessions.get(_owner(), session_id)

    async def sessions(self) -> list[Session]:
        """See Operations."""
        raise _kept_by_the_gateway()

    async def delete_session(self, session_id: str) -> None:
        """See Operations."""
        raise _kept_by_the_gateway()

    async def activity(self) -> ActivityReport:
        """See Operations."""
        info = self._model.info
        return ActivityReport((ModelActivity(info.id, "ready", info.backend, info.device, status=await self.status()),))

    # ---- what only a worker does ----

    async def put_session(self, session: Session) -> None:
        """Take a session or its next revision from the gateway."""
        await asyncio.to_thread(self._model.put_session, session, current_caller())

    async def drop_session(self, session_id: str) -> None:
        """Forget a session; generations under way keep the plan they have."""
        self._model.sessions.drop(_owner(), session_id)

    async def status(self) -> WorkerStatus:
        """The engine and the queue."""
        return self._model.status()

    async def health(self) -> HealthReport:
        """A real forward."""
        try:
            return await asyncio.to_thread(self._model.probe)
        except Unavailable as error:
            return HealthReport(False, error.message, {self._model.info.id: "failed"})

    async def close(self) -> None:
        """End every request and let go of the model."""
        await asyncio.to_thread(self._model.close)


def _kept_by_the_gateway() -> Unsupported:
    return Unsupported("sessions are kept by the gateway; ask there")


def _owner() -> str:
    return current_caller().user.name


def _end_worker() -> None:
    """The model's thread is gone for good: the process ends, and the gateway starts another."""
    time.sleep(LAST_WORDS_S)  # what each request was told goes out
    os._exit(70)
