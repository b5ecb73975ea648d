"""The operations of a worker, over the one model that it holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...backends import free_bytes, shrinks_on_the_way
from ...backends.checkpoints import resolve_model
from ...backends.model.footprint import check_room
from ...protos.errors import Internal, Unavailable, Unsupported
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, StoredCapture
from ...protos.operations import Operation
from ...protos.saes import LoadSaeRequest, SaeInfo
from ...protos.service import InferenceRequest
from ...protos.tensors import Tensor
from ...protos.variants.stored import LoadVariantRequest, VariantInfo
from ..auth.callers import Caller, current_caller
from ..config import WorkerConfig
from . import functions
from .model import LocalModel
from .output.delivery import ActiveRequest
from .output.sinks import AsyncSink

__all__ = ["LocalOperations"]

LAST_WORDS_S = 0.5

P = ParamSpec("P")
T = TypeVar("T")


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
            free = free_bytes(config.backend, config.device)
            quantize = config.quantize if shrinks_on_the_way(config.backend, config.device) else ""
            check_room(checkpoint.folder, config.model, config.dtype, config.engine, free, config.backend, quantize)
            report("load", 0, 0)
            model = LocalModel(config, checkpoint.folder, model_hash=checkpoint.model_hash, on_death=_end_worker)
            report("check", 0, 0)
            health = model.probe()
            if not health.ready:
                raise Internal(f"the model was loaded, but its first forward failed: {health.detail}")
            return model

        return cls(await asyncio.to_thread(work))

    async def generate(self, request: InferenceRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
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

    def _drop_unwanted(self, submitted: asyncio.Future[ActiveRequest]) -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._model.scheduler.cancel(submitted.result())

    run = gradients = sweep = generate

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """A worker has one model."""
        raise Unsupported("a worker serves one model; load others through the gateway")
        yield  # pragma: no cover - makes this an async generator

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        """See Operations."""
        return functions.weight_names(self._model, current_caller(), model)

    async def weights(self, name: str, model: str) -> Tensor:
        """See Operations."""
        return Tensor.of(await self._in_thread(functions.weights, name, model))

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        """See Operations."""
        return await self._in_thread(functions.stored, capture_id, model)

    async def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        """See Operations."""
        async with self._one_load:  # each holds an SAE twice, and threads that requests are checked on
            return await self._in_thread(functions.load_sae, request)

    async def load_variant(self, request: LoadVariantRequest) -> VariantInfo:
        """See Operations."""
        async with self._one_load:
            return await self._in_thread(functions.load_variant, request)

    async def other(self, operation: Operation, *args: Any) -> Any:
        """All that takes a function of functions.py and nothing more."""
        return await self._in_thread(functions.FUNCTIONS[operation.call], *args)

    async def _in_thread(
        self, function: Callable[Concatenate[LocalModel, Caller, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        return await asyncio.to_thread(function, self._model, current_caller(), *args, **named)

    async def health(self) -> HealthReport:
        """A real forward."""
        try:
            return await asyncio.to_thread(self._model.probe)
        except Unavailable as error:
            return HealthReport(False, error.message, {self._model.info.id: "failed"})

    async def close(self) -> None:
        """End every request and let go of the model."""
        await asyncio.to_thread(self._model.close)


def _end_worker() -> None:
    """The model's thread is gone for good: the process ends, and the gateway starts another."""
    time.sleep(LAST_WORDS_S)  # what each request was told goes out
    os._exit(70)
