"""The operations over all workers. Tensor streams pass through as bytes; only the faces in JSON have them decoded."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backends.checkpoints.default_model import DEFAULT_ID, is_default
from ..protos import probewire_pb2 as pb
from ..protos.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from ..protos.events import FrameAssembler, decode_events
from ..protos.model import (
    Event,
    GenerateRequest,
    HealthReport,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    TensorFrame,
    Tokenized,
    TokenizeRequest,
)
from ..protos.tensors import Tensor
from ..protos.wire import from_proto, parse, to_proto
from .config import DTYPES, GatewayConfig, WorkerConfig, choose_backend
from .streams import closing
from .workers import Worker

__all__ = ["Gateway", "PassThrough", "default_id"]

_MODELS, _INFERENCE, _CAPTURES = (f"/probewire.v1.{name}/" for name in ("Models", "Inference", "Captures"))


class Gateway:
    """`Operations` over a worker a model. Make it inside a running event loop, and `close` it."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._workers: dict[str, Worker] = {}
        self._folders = 0
        self._closing = False
        short = Path("/tmp")  # noqa: S108  socket paths have at most 104 characters, and TMPDIR may be longer
        self._runtime = Path(tempfile.mkdtemp(prefix="probewire-", dir=short if short.is_dir() else None))
        self.streams = PassThrough(self)

    @property
    def workers(self) -> dict[str, Worker]:
        """Model id → worker."""
        return self._workers

    def find(self, model: str) -> Worker:
        """The worker of a model; empty: the only one. Raises, naming the models there are and the fix."""
        names = ", ".join(self._workers)
        if self._closing:
            raise Unavailable("the server is shutting down")
        if model:
            if model not in self._workers:
                raise NotFound(f"no model {model!r} is loaded; loaded: {names or 'none'}; load it first")
            return self._workers[model]
        if not self._workers:
            raise FailedPrecondition("no model is loaded; load one first (`probewire serve MODEL`, or the Load call)")
        if len(self._workers) > 1:
            raise InvalidArgument(f"several models are loaded, so the request must name one of: {names}")
        return next(iter(self._workers.values()))

    # ---- models ----

    async def models(self) -> list[ModelInfo]:
        served = (worker for worker in self._workers.values() if worker.state in ("ready", "restarting"))
        return [worker.info for worker in served if worker.info is not None]

    async def describe(self, model: str) -> ModelInfo:
        worker = self.find(model)
        if worker.info is None or worker.state == "failed":
            raise Unavailable(f"model {worker.config.id!r} is {worker.status}; retry", retry_after_s=2.0)
        return worker.info

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """Loading what is loaded, or being loaded, under the same id joins it. A caller who leaves does not end the load."""
        worker = self._joined(request)
        async with closing(worker.progress()) as progress:
            try:
                async for step in progress:
                    yield step
            finally:
                if worker.state == "failed" and worker.info is None and self._workers.get(worker.config.id) is worker:
                    del self._workers[worker.config.id]

    def _joined(self, request: LoadRequest) -> Worker:
        config = self._worker_config(request)
        found = self._workers.get(config.id)
        if found is not None and found.state != "failed":
            if found.state == "stopping":
                raise Unavailable(f"model {config.id!r} is being unloaded; retry", retry_after_s=2.0)
            if found.config == config:
                return found
            raise FailedPrecondition(
                f"id {config.id!r} is taken by {found.config.model!r} ({found.config.backend}, {found.config.dtype}); "
                "unload that first, or give this one another id"
            )
        if self._closing:
            raise Unavailable("the server is shutting down")
        if found is None and len(self._workers) >= self._config.max_models:
            raise ResourceExhausted(f"{len(self._workers)} models are loaded, the most allowed; unload one first")
        worker = Worker(config, self._config.supervision, self._new_folder())
        self._workers[config.id] = worker
        worker.start()
        return worker

    def _worker_config(self, request: LoadRequest) -> WorkerConfig:
        base = self._config.worker
        if request.dtype not in DTYPES:
            raise InvalidArgument(f"unknown dtype {request.dtype!r}; allowed: {', '.join(DTYPES)}")
        name = request.id or default_id(request.model)
        if len(name) > 200 or not name.isprintable():
            raise InvalidArgument(f"a model id has at most 200 printable characters, got {name[:220]!r}")
        return replace(
            base,
            model=DEFAULT_ID if is_default(request.model) else request.model,
            id=name,
            backend=choose_backend(base.backend if request.backend == "auto" else request.backend),
            dtype=base.dtype if request.dtype == "auto" else request.dtype,
            revision=request.revision or base.revision,
        )

    def _new_folder(self) -> Path:
        folder = self._runtime / str(self._folders)
        self._folders += 1
        folder.mkdir(mode=0o700)
        return folder

    async def unload(self, model: str) -> None:
        worker = self.find(model)
        await worker.stop()
        if self._workers.get(worker.config.id) is worker:
            del self._workers[worker.config.id]

    async def health(self) -> HealthReport:
        """Ready when a model is; each worker is probed with a real forward on its own clock."""
        models = {name: worker.status for name, worker in self._workers.items()}
        n_ready = sum(status == "ready" for status in models.values())
        if self._closing:
            return HealthReport(False, "shutting down", models)
        if not models:
            return HealthReport(False, "no model is loaded", models)
        restarts = {name: worker.restarts for name, worker in self._workers.items() if worker.restarts}
        note = "".join(f"; {name} was restarted {n} times" for name, n in restarts.items())
        return HealthReport(n_ready > 0, f"{n_ready} of {len(models)} models ready{note}", models)

    def drain(self) -> None:
        """Take no new requests; those in flight go on."""
        self._closing = True

    async def close(self) -> None:
        """End every worker."""
        self._closing = True
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))
        self._workers.clear()
        shutil.rmtree(self._runtime, ignore_errors=True)

    def kill(self) -> None:
        """End every worker at once, without waiting."""
        for worker in self._workers.values():
            worker.kill()
        shutil.rmtree(self._runtime, ignore_errors=True)

    # ---- inference ----

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        return _decoded(self.streams.generate(_serialised(request)))

    def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        return _decoded(self.streams.run(_serialised(request)))

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        answer = await self.find(request.model).unary(_MODELS + "Tokenize", _serialised(request))
        return from_proto(Tokenized, pb.Tokenized.FromString(answer))

    # ---- weights and captures ----

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        request = pb.WeightsRequest(model=model).SerializeToString()
        async with closing(self.streams.weights(request)) as chunks:
            parsed = [pb.WeightChunk.FromString(chunk) async for chunk in chunks]
        return {chunk.name: tuple(chunk.shape) for chunk in parsed}

    async def weights(self, name: str, model: str) -> Tensor:
        request = pb.WeightsRequest(model=model, name=name).SerializeToString()
        async with closing(self.streams.weights(request)) as chunks:
            parsed = [pb.WeightChunk.FromString(chunk) async for chunk in chunks]
        return Tensor(parsed[0].dtype, tuple(parsed[0].shape), b"".join(chunk.data for chunk in parsed))

    async def captures(self, model: str) -> list[StoredCapture]:
        worker = self.find(model)
        answer = await worker.unary(_CAPTURES + "List", pb.ModelRequest(model=model).SerializeToString())
        return [from_proto(StoredCapture, item) for item in pb.CaptureList.FromString(answer).captures]

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        worker = self.find(model)
        request = pb.CaptureRequest(model=model, id=capture_id).SerializeToString()
        async with closing(_decoded(worker.stream(_CAPTURES + "Get", request))) as steps:
            frames = [event async for events in steps for event in events if isinstance(event, TensorFrame)]
        frame = frames[0]
        stored = StoredCapture(
            id=frame.id,
            site=frame.sites[0],
            input=frame.input,
            positions=frame.positions,
            dtype=frame.tensor.dtype,
            shape=frame.tensor.shape,
            model=worker.config.id,
        )
        return stored, frame.tensor

    async def delete_capture(self, capture_id: str, model: str) -> None:
        request = pb.CaptureRequest(model=model, id=capture_id).SerializeToString()
        await self.find(model).unary(_CAPTURES + "Delete", request)


class PassThrough:
    """`Streams` of the gateway: the request is read for its model, and the worker's answer goes on untouched."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def generate(self, request: bytes) -> AsyncIterator[bytes]:
        return self._passed(_INFERENCE + "Generate", pb.GenerateRequest, request)

    def run(self, request: bytes) -> AsyncIterator[bytes]:
        return self._passed(_INFERENCE + "Run", pb.RunRequest, request)

    def weights(self, request: bytes) -> AsyncIterator[bytes]:
        return self._passed(_MODELS + "Weights", pb.WeightsRequest, request)

    def capture(self, request: bytes) -> AsyncIterator[bytes]:
        return self._passed(_CAPTURES + "Get", pb.CaptureRequest, request)

    def _passed(self, method: str, message: Callable[[], Any], request: bytes) -> AsyncIterator[bytes]:
        return self._gateway.find(parse(message, request).model).stream(method, request)


def default_id(model: str) -> str:
    """The name a model is served under when none is given: a folder's or the default model's last part, else itself."""
    if is_default(model):
        return DEFAULT_ID.rpartition("/")[2]
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _serialised(value: Any) -> bytes:
    return to_proto(value).SerializeToString()


async def _decoded(messages: AsyncIterator[bytes]) -> AsyncIterator[list[Event]]:
    assembler = FrameAssembler()
    async with closing(messages):
        async for message in messages:
            events = list(decode_events(pb.Events.FromString(message), assembler))
            if events:
                yield events
