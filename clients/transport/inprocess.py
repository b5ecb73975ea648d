"""A service in the same process, behind the same edge as the others: foreign exceptions become ours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ...protos.activity import ActivityReport
from ...protos.errors import Internal, InvalidArgument, ProbewireError
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.service import Service
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Array
from .base import Watch
from .closable import Closable

__all__ = ["InProcessTransport"]

T = TypeVar("T")


class InProcessTransport:
    """Calls a handed service directly; nothing is encoded. Closing it closes the service."""

    address = "in process"
    is_here = True

    def __init__(self, service: Service) -> None:
        if not isinstance(service, Service):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks hand anything
            missing = [name for name in vars(Service) if not name.startswith("_") and not hasattr(service, name)]
            raise InvalidArgument(
                f"{type(service).__name__} is not a protos.service.Service; it lacks {', '.join(missing)}"
            )
        self._service = service

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        return _stream(lambda: self._service.generate(request))

    def run(self, request: RunRequest) -> Iterator[Event]:
        return _stream(lambda: self._service.run(request))

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        return _stream(lambda: self._service.gradients(request))

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        return _stream(lambda: self._service.sweep(request))

    def models(self) -> list[ModelInfo]:
        with _translated():
            return self._service.models()

    def describe(self, model: str = "") -> ModelInfo:
        with _translated():
            return self._service.describe(model)

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        return _stream(lambda: self._service.load(request))

    def unload(self, model: str) -> None:
        with _translated():
            self._service.unload(model)

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        with _translated():
            return self._service.tokenize(request)

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        with _translated():
            array = self._service.weights(name, model)
        if watch is not None:
            watch(array.nbytes, array.nbytes)
        return array

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        with _translated():
            return self._service.weight_names(model)

    def captures(self, model: str = "") -> list[StoredCapture]:
        with _translated():
            return self._service.captures(model)

    def capture(self, capture_id: str, model: str = "") -> Array:
        with _translated():
            return self._service.capture(capture_id, model)

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        with _translated():
            self._service.delete_capture(capture_id, model)

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        with _translated():
            return self._service.load_sae(request)

    def send_sae(self, part: SaePart) -> SaeReceived:
        with _translated():
            return self._service.send_sae(part)

    def saes(self, model: str = "") -> list[SaeInfo]:
        with _translated():
            return self._service.saes(model)

    def unload_sae(self, name: str, model: str = "") -> None:
        with _translated():
            self._service.unload_sae(name, model)

    def create_session(self, request: CreateSessionRequest) -> Session:
        with _translated():
            return self._service.create_session(request)

    def update_session(self, request: UpdateSessionRequest) -> Session:
        with _translated():
            return self._service.update_session(request)

    def session(self, session_id: str) -> Session:
        with _translated():
            return self._service.session(session_id)

    def sessions(self) -> list[Session]:
        with _translated():
            return self._service.sessions()

    def delete_session(self, session_id: str) -> None:
        with _translated():
            self._service.delete_session(session_id)

    def activity(self) -> ActivityReport:
        with _translated():
            return self._service.activity()

    def health(self) -> HealthReport:
        with _translated():
            return self._service.health()

    def close(self) -> None:
        with _translated():
            self._service.close()


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except ProbewireError:
        raise
    except Exception as error:
        raise Internal(f"the service in this process failed: {type(error).__name__}: {error}") from error


def _stream(start: Callable[[], Iterator[T]]) -> Iterator[T]:
    with _translated():
        items = start()
    return Closable(_read(items), lambda: _close(items))


def _read(items: Iterator[T]) -> Iterator[T]:
    with _translated():
        try:
            yield from items
        finally:
            _close(items)


def _close(items: object) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        try:
            close()
        except ValueError as error:
            if "already executing" not in str(error):  # a plain generator in another thread ends with its next item
                raise
