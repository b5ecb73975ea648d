"""The operations as gRPC calls: what is sent to which method, and how its answer is read.

The same for the client that waits and the one that awaits.
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
from ...protos.errors import Internal, NotFound
from ...protos.loading import HealthReport
from ...protos.model import Event, TensorFrame
from ...protos.operations import BY_CALL, Operation
from ...protos.tensors import Array, Tensor, numpy_dtype
from ...protos.wire.codec import from_json
from ...protos.wire.events import FrameAssembler, read_events
from .base import Watch
from .gathered import Gathered

__all__ = ["Streamed", "Unary", "call_of"]

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


def call_of(operation: str | Operation, *args: Any) -> Unary[Any] | Streamed[Any] | Gathered[Streamed[Any], Any]:
    """The call of an operation, by its row or by the name that it has in `Service`."""
    if isinstance(operation, str) and operation in _OWN:
        return _OWN[operation](*args)
    row = BY_CALL[operation] if isinstance(operation, str) else operation
    if row.kind == "events":
        return _events(row.path, row.asked(*args))
    if row.kind == "values":
        parse = row.answer_message.FromString
        return Streamed(
            row.path, row.asked(*args), parse, lambda: lambda message: (row.result(message),), is_bounded=False
        )
    return Unary(row.path, row.asked(*args), row.answer_message, lambda message, _: row.result(message))


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


def capture(capture_id: str, model: str = "") -> Gathered[Streamed[Event], Array]:
    found: list[Event] = []

    def whole() -> Array:
        for event in found:
            if isinstance(event, TensorFrame):
                return event.tensor.numpy()
        raise Internal(f"the server sent nothing for capture {capture_id!r}")

    return Gathered(
        _events(BY_CALL["capture"].path, pb.CaptureRequest(model=model, id=capture_id)), found.append, whole
    )


def health() -> Unary[HealthReport]:
    def read(answer: Any, trailers: Mapping[str, Any]) -> HealthReport:
        if REPORT_KEY in trailers:
            return from_json(HealthReport, json.loads(trailers[REPORT_KEY]))
        ready = answer.status == health_pb2.HealthCheckResponse.SERVING
        return HealthReport(ready, "ready" if ready else "not serving")

    request = health_pb2.HealthCheckRequest()
    return Unary("/grpc.health.v1.Health/Check", request, health_pb2.HealthCheckResponse, read)


def _events(path: str, request: ProtoMessage) -> Streamed[Event]:
    def reader() -> Callable[[Any], Iterable[Event]]:
        assembler = FrameAssembler()
        return lambda message: list(read_events(message, assembler))

    return Streamed(path, request, bytes, reader)


def _chunks(request: pb.WeightsRequest) -> Streamed[Any]:
    return Streamed(BY_CALL["weights"].path, request, pb.WeightChunk.FromString, lambda: lambda chunk: (chunk,))


_OWN: dict[str, Callable[..., Any]] = {f.__name__: f for f in (weights, weight_names, capture, health)}
"""What is more than a message there and a message back."""


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
