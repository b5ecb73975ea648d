"""The operations of `Service` as gRPC calls: what is sent to which method, and how its answer is read.

Functions of one name with the operations, so that the client that waits and the one that awaits make the same calls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2

from ...protos import probewire_pb2 as pb
from ...protos.activity import ActivityReport
from ...protos.errors import Internal, NotFound
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import (
    Event,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    TensorFrame,
    Tokenized,
    TokenizeRequest,
)
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Array, Tensor, numpy_dtype
from ...protos.wire.codec import from_json, from_proto, to_proto
from ...protos.wire.events import FrameAssembler, read_events
from .base import Watch
from .gathered import Gathered

__all__ = ["Streamed", "Unary"]

REPORT_KEY = "health-report-bin"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unary(Generic[T]):
    """A call with one answer."""

    method: str
    request: ProtoMessage
    answer: type[ProtoMessage]
    read: Callable[[Any, Mapping[str, Any]], T]
    """Of the answer and what trails it."""


@dataclass(frozen=True, slots=True)
class Streamed(Generic[T]):
    """A call whose answers come one by one."""

    method: str
    request: ProtoMessage
    parse: Callable[[bytes], Any]
    reader: Callable[[], Callable[[Any], Iterable[T]]]
    """Makes, for one call, what reads its messages."""
    is_bounded: bool = True
    """Whether the client's timeout_s holds for it."""


def generate(request: GenerateRequest) -> Streamed[Event]:
    return _events("Inference/Generate", to_proto(request))


def run(request: RunRequest) -> Streamed[Event]:
    return _events("Inference/Run", to_proto(request))


def gradients(request: GradientsRequest) -> Streamed[Event]:
    return _events("Inference/Gradients", to_proto(request))


def sweep(request: SweepRequest) -> Streamed[Event]:
    return _events("Inference/Sweep", to_proto(request))


def models() -> Unary[list[ModelInfo]]:
    return _list(ModelInfo, "Models/List", pb.ListRequest(), pb.ModelList, "models")


def describe(model: str = "") -> Unary[ModelInfo]:
    return _value(ModelInfo, "Models/Describe", pb.ModelRequest(model=model), pb.ModelInfo)


def load(request: LoadRequest) -> Streamed[LoadProgress]:
    def read(message: Any) -> Iterable[LoadProgress]:
        return (from_proto(LoadProgress, message),)

    parse = pb.LoadProgress.FromString
    return Streamed("/probewire.v1.Models/Load", to_proto(request), parse, lambda: read, is_bounded=False)


def unload(model: str) -> Unary[None]:
    return _nothing("Models/Unload", pb.ModelRequest(model=model))


def tokenize(request: TokenizeRequest) -> Unary[Tokenized]:
    return _value(Tokenized, "Models/Tokenize", to_proto(request), pb.Tokenized)


def weights(name: str, model: str = "", watch: Watch | None = None) -> Gathered[Streamed[Any], Array]:
    if not name:
        raise NotFound("weights needs a name; weight_names() lists them")
    found = _Weight(name, watch)
    return Gathered(_chunks(pb.WeightsRequest(model=model, name=name)), found.add, found.whole)


def weight_names(model: str = "") -> Gathered[Streamed[Any], dict[str, tuple[int, ...]]]:
    chunks: list[pb.WeightChunk] = []
    return Gathered(
        _chunks(pb.WeightsRequest(model=model)),
        chunks.append,
        lambda: {chunk.name: tuple(chunk.shape) for chunk in chunks},
    )


def captures(model: str = "") -> Unary[list[StoredCapture]]:
    return _list(StoredCapture, "Captures/List", pb.ModelRequest(model=model), pb.CaptureList, "captures")


def capture(capture_id: str, model: str = "") -> Gathered[Streamed[Event], Array]:
    found: list[Event] = []

    def whole() -> Array:
        for event in found:
            if isinstance(event, TensorFrame):
                return event.tensor.numpy()
        raise Internal(f"the server sent nothing for capture {capture_id!r}")

    return Gathered(_events("Captures/Get", pb.CaptureRequest(model=model, id=capture_id)), found.append, whole)


def delete_capture(capture_id: str, model: str = "") -> Unary[None]:
    return _nothing("Captures/Delete", pb.CaptureRequest(model=model, id=capture_id))


def load_sae(request: LoadSaeRequest) -> Unary[SaeInfo]:
    return _value(SaeInfo, "Saes/Load", to_proto(request), pb.SaeInfo)


def send_sae(part: SaePart) -> Unary[SaeReceived]:
    return _value(SaeReceived, "Saes/Send", to_proto(part), pb.SaeReceived)


def saes(model: str = "") -> Unary[list[SaeInfo]]:
    return _list(SaeInfo, "Saes/List", pb.ModelRequest(model=model), pb.SaeList, "saes")


def unload_sae(name: str, model: str = "") -> Unary[None]:
    return _nothing("Saes/Unload", pb.SaeRequest(name=name, model=model))


def create_session(request: CreateSessionRequest) -> Unary[Session]:
    return _value(Session, "Sessions/Create", to_proto(request), pb.Session)


def update_session(request: UpdateSessionRequest) -> Unary[Session]:
    return _value(Session, "Sessions/Update", to_proto(request), pb.Session)


def session(session_id: str) -> Unary[Session]:
    return _value(Session, "Sessions/Get", pb.SessionRequest(id=session_id), pb.Session)


def sessions() -> Unary[list[Session]]:
    return _list(Session, "Sessions/List", pb.ListRequest(), pb.SessionList, "sessions")


def delete_session(session_id: str) -> Unary[None]:
    return _nothing("Sessions/Delete", pb.SessionRequest(id=session_id))


def activity() -> Unary[ActivityReport]:
    return _value(ActivityReport, "Activity/Get", pb.ListRequest(), pb.ActivityReport)


def health() -> Unary[HealthReport]:
    def read(answer: Any, trailers: Mapping[str, Any]) -> HealthReport:
        if REPORT_KEY in trailers:
            return from_json(HealthReport, json.loads(trailers[REPORT_KEY]))
        ready = answer.status == health_pb2.HealthCheckResponse.SERVING
        return HealthReport(ready, "ready" if ready else "not serving")

    request = health_pb2.HealthCheckRequest()
    return Unary("/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse, read)


def _value(cls: type[T], method: str, request: ProtoMessage, answer: type[ProtoMessage]) -> Unary[T]:
    return Unary(f"/probewire.v1.{method}", request, answer, lambda message, _: from_proto(cls, message))


def _list(cls: type[T], method: str, request: ProtoMessage, answer: type[ProtoMessage], field: str) -> Unary[list[T]]:
    def read(message: Any, _: Mapping[str, Any]) -> list[T]:
        return [from_proto(cls, item) for item in getattr(message, field)]

    return Unary(f"/probewire.v1.{method}", request, answer, read)


def _nothing(method: str, request: ProtoMessage) -> Unary[None]:
    return Unary(f"/probewire.v1.{method}", request, pb.Empty, lambda message, _: None)


def _events(method: str, request: ProtoMessage) -> Streamed[Event]:
    def reader() -> Callable[[Any], Iterable[Event]]:
        assembler = FrameAssembler()
        return lambda message: list(read_events(message, assembler))

    return Streamed(f"/probewire.v1.{method}", request, bytes, reader)


def _chunks(request: pb.WeightsRequest) -> Streamed[Any]:
    return Streamed("/probewire.v1.Models/Weights", request, pb.WeightChunk.FromString, lambda: lambda chunk: (chunk,))


class _Weight:
    """A weight out of its pieces."""

    def __init__(self, name: str, watch: Watch | None) -> None:
        self._name, self._watch = name, watch
        self._data, self._head = bytearray(), pb.WeightChunk()

    def add(self, chunk: pb.WeightChunk) -> None:
        if chunk.offset == 0:
            self._head = chunk
        if chunk.offset != len(self._data):
            raise Internal(
                f"a piece of weight {self._name!r} is missing: at byte {chunk.offset} of {len(self._data)} received"
            )
        self._data += chunk.data
        if self._watch is not None:
            n_bytes = math.prod(self._head.shape) * numpy_dtype(self._head.dtype).itemsize
            self._watch(len(self._data), n_bytes)

    def whole(self) -> Array:
        if not self._head.name:
            raise Internal(f"the server sent nothing for weight {self._name!r}")
        return Tensor(self._head.dtype, tuple(self._head.shape), bytes(self._data)).numpy()
