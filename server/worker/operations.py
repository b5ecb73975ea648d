"""The operations of a worker, over the one model that it holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ...backends import free_bytes
from ...backends.checkpoints import resolve_model
from ...backends.model.footprint import check_room
from ...protos.activity import ActivityReport, ModelActivity, WorkerStatus
from ...protos.errors import Internal, Unavailable, Unsupported
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import (
    Event,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    Tokenized,
    TokenizeRequest,
)
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.service import InferenceRequest
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Tensor
from ..auth.callers import current_caller
from ..config import WorkerConfig
from .model import LocalModel
from .output.delivery import Job
from .output.sinks import AsyncSink

__all__ = ["LocalOperations"]

LAST_WORDS_S = 0.5


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
