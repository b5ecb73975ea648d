"""The operations of the server, free of transport. The APIs (gRPC, REST, OpenAI, NeuroScope) only decode, call, encode.

Two things implement `Operations`: `LocalOperations` inside a worker, over one model, and `Gateway`, over all workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from ..protos.loading import HealthReport, LoadProgress, LoadRequest
from ..protos.model import Event, GenerateRequest, RunRequest, StoredCapture
from ..protos.operations import BY_CALL, Operation
from ..protos.service import InferenceRequest
from ..protos.tensors import Tensor

__all__ = ["Answering", "Operations", "answer", "compute"]


class Answering(Protocol):
    """What answers operations: each by the method that its row names, those without one by `other(operation, *args)`."""

    async def health(self) -> HealthReport:
        """Whether the models can serve, found by a real forward."""
        ...


async def answer(operations: Answering, operation: Operation | str, *args: Any) -> Any:
    """What an operation with one answer comes to: by its row, or by the call that the row names."""
    operation = BY_CALL[operation] if isinstance(operation, str) else operation
    by_row: Any = operations
    own = getattr(by_row, operation.call, None)
    return await (by_row.other(operation, *args) if own is None else own(*args))


def compute(operations: Answering, operation: Operation, request: InferenceRequest) -> AsyncIterator[list[Event]]:
    """The events of what a model is asked to compute, those of one step together. Closing the iterator cancels it."""
    return getattr(operations, operation.call)(request)


class Operations(Answering, Protocol):
    """What is more than a message there and a message back, for the APIs to call as it is.

    Every method raises ProbewireError and nothing else. Closing an event iterator cancels the request.
    """

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        """Started, then tokens and frames, then Finished once an input; the events of one step come together."""
        ...

    def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        """Started, frames, Finished once an input."""
        ...

    def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """Load a model; the last message carries its info."""
        ...

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape."""
        ...

    async def weights(self, name: str, model: str) -> Tensor:
        """One weight, named and shaped as in the checkpoint."""
        ...

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        """One stored capture."""
        ...
