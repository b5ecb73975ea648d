"""A model in this process as the sync `Service` of protos/service.py: what `Client.inprocess` is handed."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from ...backends.checkpoints import resolve_model
from ...protos.activity import ActivityReport, ModelActivity
from ...protos.errors import Unsupported
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ...protos.operations import Operation
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.service import InferenceRequest
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Array
from ..auth.callers import local_caller
from ..auth.users import LOCAL
from ..config import WorkerConfig
from ..state.sessions import SessionStore
from .functions import FUNCTIONS
from .model import LocalModel
from .output.sinks import QueueSink

__all__ = ["InProcessService"]


class _Answer(Iterator[Event]):
    """A request's events. Any thread may close it: whoever waits for the next one is told that there is none."""

    def __init__(self, events: Generator[Event], sink: QueueSink) -> None:
        self._events, self._sink = events, sink

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Cancel the request."""
        try:
            self._events.close()
        except ValueError:  # another thread is inside: when it comes out, it cancels the request itself
            self._sink.end(None)


class InProcessService:
    """The sync `Service` of protos/service.py over a model in this process: what `Client.inprocess` is handed."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._sessions = SessionStore(model.state)
        self._updating = threading.Lock()

    @classmethod
    def create(
        cls, model: str | Path = "", *, backend: str = "torch", dtype: str = "auto", **config: Any
    ) -> InProcessService:
        """Load a model by name, folder or Hugging Face id."""
        model = str(model)
        checkpoint = resolve_model(model)
        config.setdefault("threads", 0)
        worker = WorkerConfig(model=model, id=checkpoint.model_id, backend=backend, dtype=dtype, **config)
        return cls(LocalModel(worker, checkpoint.folder, model_hash=checkpoint.model_hash))

    def _stream(self, request: InferenceRequest) -> Iterator[Event]:
        sink = QueueSink(self._model.scheduler)
        return _Answer(self._events(request, sink), sink)

    def _events(self, request: InferenceRequest, sink: QueueSink) -> Generator[Event]:
        job = self._model.submit(request, sink, local_caller())
        try:
            yield from sink.events()
        finally:
            self._model.scheduler.cancel(job)

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        """See Service."""
        return self._stream(request)

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        """See Service."""
        return self._stream(request)

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        """See Service."""
        return self._stream(request)

    def run(self, request: RunRequest) -> Iterator[Event]:
        """See Service."""
        return self._stream(request)

    def models(self) -> list[ModelInfo]:
        """See Service."""
        return [self._model.info]

    def describe(self, model: str = "") -> ModelInfo:
        """See Service."""
        self._model.check_model(model)
        return self._model.info

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        """In process there is one model."""
        raise Unsupported("this service holds one model; make another with InProcessService.create")

    def unload(self, model: str) -> None:
        """In process there is one model."""
        raise Unsupported("this service holds one model; close it instead")

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """See Service."""
        return self._model.tokenize(request)

    def weights(self, name: str, model: str = "") -> Array:
        """See Service."""
        self._model.check_model(model)
        return self._model.backend.weight(name)

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        """See Service."""
        self._model.check_model(model)
        return dict(self._model.backend.weight_names())

    def captures(self, model: str = "") -> list[StoredCapture]:
        """See Service."""
        return self._model.store.list(LOCAL.name, model)

    def capture(self, capture_id: str, model: str = "") -> Array:
        """See Service."""
        return self._model.store.get_item(LOCAL.name, capture_id)[1].numpy()

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        """See Service."""
        self._model.store.delete(LOCAL.name, capture_id)

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        """See Service."""
        return self._model.load_sae(request, local_caller())

    def send_sae(self, part: SaePart) -> SaeReceived:
        """See Service."""
        return self._model.saes.receive(LOCAL, part)

    def saes(self, model: str = "") -> list[SaeInfo]:
        """See Service."""
        return self._model.saes.list(LOCAL, model)

    def unload_sae(self, name: str, model: str = "") -> None:
        """See Service."""
        self._model.saes.delete(LOCAL, name, model)

    def create_session(self, request: CreateSessionRequest) -> Session:
        """See Service."""
        self._model.check_model(request.model)
        with self._sessions.drafted(LOCAL.name, request, self._model.info.id, 0) as session:
            self._model.put_session(session, local_caller())
            self._sessions.add(LOCAL.name, session)
        return session

    def update_session(self, request: UpdateSessionRequest) -> Session:
        """See Service."""
        with self._updating:
            session = self._sessions.revised(LOCAL.name, request)
            self._model.put_session(session, local_caller())
            self._sessions.replace(LOCAL.name, session)
        return session

    def session(self, session_id: str) -> Session:
        """See Service."""
        return self._sessions.get(LOCAL.name, session_id)

    def sessions(self) -> list[Session]:
        """See Service."""
        return self._sessions.list(LOCAL.name)

    def delete_session(self, session_id: str) -> None:
        """See Service."""
        with self._updating:
            self._sessions.delete(LOCAL.name, session_id)
            self._model.sessions.drop(LOCAL.name, session_id)

    def activity(self) -> ActivityReport:
        """See Service; requests are not listed in process."""
        info = self._model.info
        return ActivityReport(
            (ModelActivity(info.id, "ready", info.backend, info.device, status=self._model.status()),)
        )

    def health(self) -> HealthReport:
        """A real forward."""
        return self._model.probe()

    def other(self, operation: Operation, *args: Any) -> Any:
        """An operation that takes a function of functions.py and nothing more."""
        return FUNCTIONS[operation.call](self._model, local_caller(), *args)

    def close(self) -> None:
        """Let go of the model."""
        self._model.close()
