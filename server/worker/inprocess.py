"""A model in this process as the sync `Service` of protos/service.py: what `Client.inprocess` is handed."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...backends.checkpoints import resolve_model
from ...backends.checkpoints.quantised.at_load import quantised_id
from ...protos.errors import Unsupported
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event
from ...protos.operations import Operation
from ...protos.service import InferenceRequest
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.tensors import Array
from ..auth.callers import Caller, local_caller
from ..auth.users import LOCAL
from ..config import WorkerConfig
from ..state.sessions import SessionStore
from . import functions
from .model import LocalModel
from .output.sinks import QueueSink

__all__ = ["InProcessService"]

P = ParamSpec("P")
T = TypeVar("T")


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


def _answers(
    function: Callable[Concatenate[LocalModel, Caller, P], T],
) -> Callable[Concatenate[InProcessService, P], T]:
    """What a function of functions.py answers, as a method."""

    @functools.wraps(function)
    def method(self: InProcessService, /, *args: P.args, **named: P.kwargs) -> T:
        return function(self._model, local_caller(), *args, **named)  # pyright: ignore[reportPrivateUsage] - it is its method

    return method


class InProcessService:
    """The sync `Service` of protos/service.py over a model in this process: what `Client.inprocess` is handed."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._sessions = SessionStore(model.state)
        self._updating = threading.Lock()
        self._let_go: Callable[[], object] = model.close

    @classmethod
    def create(
        cls, model: str | Path = "", *, backend: str = "torch", dtype: str = "auto", quantize: str = "", **config: Any
    ) -> InProcessService:
        """Load a model by name, folder or Hugging Face id."""
        model = str(model)
        checkpoint = resolve_model(model)
        config.setdefault("threads", 0)
        name = quantised_id(checkpoint.model_id, quantize)
        worker = WorkerConfig(model=model, id=name, backend=backend, dtype=dtype, quantize=quantize, **config)
        own = LocalModel(worker, checkpoint.folder, model_hash=checkpoint.model_hash)
        service = cls(own)
        # Also as the interpreter ends, for who does not close: a thread that still has an MLX stream would abort the process.
        service._let_go = weakref.finalize(service, own.close)
        return service

    def _stream(self, request: InferenceRequest) -> Iterator[Event]:
        sink = QueueSink(self._model.scheduler)
        return _Answer(self._events(request, sink), sink)

    def _events(self, request: InferenceRequest, sink: QueueSink) -> Generator[Event]:
        job = self._model.submit(request, sink, local_caller())
        try:
            yield from sink.events()
        finally:
            self._model.scheduler.cancel(job)

    generate = run = gradients = sweep = _stream
    models = _answers(functions.models)
    describe = _answers(functions.describe)
    tokenize = _answers(functions.tokenize)
    tokenizer_info = _answers(functions.tokenizer_info)
    weights = _answers(functions.weights)
    weight_names = _answers(functions.weight_names)
    captures = _answers(functions.captures)
    delete_capture = _answers(functions.delete_capture)
    load_sae = _answers(functions.load_sae)
    send_sae = _answers(functions.send_sae)
    saes = _answers(functions.saes)
    unload_sae = _answers(functions.unload_sae)
    load_variant = _answers(functions.load_variant)
    send_variant = _answers(functions.send_variant)
    variants = _answers(functions.variants)
    variant = _answers(functions.variant)
    variant_part = _answers(functions.variant_part)
    unload_variant = _answers(functions.unload_variant)
    activity = _answers(functions.activity)

    def capture(self, capture_id: str, model: str = "") -> Array:
        """See Service."""
        return functions.stored(self._model, local_caller(), capture_id, model)[1].numpy()

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        """In process there is one model."""
        raise Unsupported("this service holds one model; make another with InProcessService.create")

    def unload(self, model: str) -> None:
        """In process there is one model."""
        raise Unsupported("this service holds one model; close it instead")

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

    def health(self) -> HealthReport:
        """A real forward."""
        return self._model.probe()

    def other(self, operation: Operation, *args: Any) -> Any:
        """An operation that takes a function of functions.py and nothing more."""
        return functions.FUNCTIONS[operation.call](self._model, local_caller(), *args)

    def close(self) -> None:
        """Let go of the model."""
        self._let_go()
