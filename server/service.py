"""The operations of the server, free of transport. The faces (gRPC, REST, OpenAI, NeuroScope) only decode, call, encode.

Two things implement `Operations`: `LocalOperations` inside a worker, over one model, and `Gateway`, over all workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

from ..protos.activity import ActivityReport, WorkerStatus
from ..protos.gradients import GradientsRequest
from ..protos.loading import HealthReport, LoadProgress, LoadRequest
from ..protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ..protos.operations import Operation
from ..protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ..protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..protos.sweeps import SweepRequest
from ..protos.tensors import Tensor

__all__ = ["Answering", "Operations", "WorkerOperations", "answer"]


class Answering(Protocol):
    """What answers operations: each by the method that its row names, those without one by `other(operation, *args)`."""

    async def health(self) -> HealthReport:
        """Whether the models can serve, found by a real forward."""
        ...


async def answer(operations: Answering, operation: Operation, *args: Any) -> Any:
    """What an operation with one answer comes to."""
    by_row: Any = operations
    own = getattr(by_row, operation.call, None)
    return await (by_row.other(operation, *args) if own is None else own(*args))


class Operations(Answering, Protocol):
    """Every method raises ProbewireError and nothing else. Closing an event iterator cancels the request."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        """Started, then tokens and frames, then Finished once an input; the events of one step come together."""
        ...

    def gradients(self, request: GradientsRequest) -> AsyncIterator[list[Event]]:
        """Events of one step at a time."""
        ...

    def sweep(self, request: SweepRequest) -> AsyncIterator[list[Event]]:
        """Events of one step at a time."""
        ...

    def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        """Started, frames, Finished once an input."""
        ...

    async def models(self) -> list[ModelInfo]:
        """Every loaded model."""
        ...

    async def describe(self, model: str) -> ModelInfo:
        """One model; empty: the only one. NotFound names the models there are."""
        ...

    def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """Load a model; the last message carries its info."""
        ...

    async def unload(self, model: str) -> None:
        """End a model's worker."""
        ...

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Tokens of an input."""
        ...

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape."""
        ...

    async def weights(self, name: str, model: str) -> Tensor:
        """One weight, named and shaped as in the checkpoint."""
        ...

    async def captures(self, model: str) -> list[StoredCapture]:
        """Captures kept with `store`."""
        ...

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        """One stored capture."""
        ...

    async def delete_capture(self, capture_id: str, model: str) -> None:
        """Forget a stored capture."""
        ...

    async def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        """Load a sparse autoencoder onto a site of a model."""
        ...

    async def send_sae(self, part: SaePart) -> SaeReceived:
        """Take a part of an SAE's weights, to be loaded once all are there."""
        ...

    async def saes(self, model: str) -> list[SaeInfo]:
        """The caller's SAEs and those that are shared; of one model, or (empty) of all."""
        ...

    async def unload_sae(self, name: str, model: str) -> None:
        """Forget an SAE; requests that run with it go on."""
        ...

    async def create_session(self, request: CreateSessionRequest) -> Session:
        """Make a live session of the caller's."""
        ...

    async def update_session(self, request: UpdateSessionRequest) -> Session:
        """Give a session its next revision, for generations under way from their next step on."""
        ...

    async def session(self, session_id: str) -> Session:
        """One of the caller's sessions."""
        ...

    async def sessions(self) -> list[Session]:
        """The caller's sessions."""
        ...

    async def delete_session(self, session_id: str) -> None:
        """Forget a session; generations under way keep the plan they have."""
        ...

    async def activity(self) -> ActivityReport:
        """Who is running what."""
        ...


@runtime_checkable
class WorkerOperations(Protocol):
    """What the gateway asks of a worker besides."""

    async def put_session(self, session: Session) -> None:
        """Take a session or its next revision, for generations under way from their next step on."""
        ...

    async def drop_session(self, session_id: str) -> None:
        """Forget a session; generations under way keep the plan they have."""
        ...

    async def status(self) -> WorkerStatus:
        """The engine and the queue."""
        ...
