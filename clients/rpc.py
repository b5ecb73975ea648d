"""The client's side of gRPC: one channel, its calls as the operations of `Service`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage
from grpc_health.v1 import health_pb2

from ..protos import probewire_pb2 as pb
from ..protos.activity import ActivityReport
from ..protos.errors import Internal, NotFound
from ..protos.events import FrameAssembler, read_events
from ..protos.gradients import GradientsRequest
from ..protos.hosts import is_loopback
from ..protos.loading import HealthReport, LoadProgress, LoadRequest
from ..protos.model import (
    Event,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    TensorFrame,
    Tokenized,
    TokenizeRequest,
)
from ..protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ..protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..protos.sweeps import SweepRequest
from ..protos.tensors import Array, Tensor, numpy_dtype
from ..protos.wire import from_json, from_proto, to_proto
from .closable import Closable
from .rpc_errors import translated
from .tls import Tls
from .transport import Watch

__all__ = ["RpcTransport"]

MAX_MESSAGE_BYTES = 64 << 20
"""Of one answer; tensors come in pieces of under 1 MiB, so only a long list can be near it."""
KEEPALIVE_S = 60.0
"""A connection that does not answer a ping is given up, so that a dead box ends a call instead of hanging it."""
KEEPALIVE_TIMEOUT_S = 20.0
RECONNECT_S = 5.0
"""At most so long after a server is back, calls reach it again; grpc itself waits up to two minutes."""
REPORT_KEY = "health-report-bin"

M = TypeVar("M", bound=ProtoMessage)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Call(Protocol[T_co]):
    """A call whose answers come one by one."""

    def __iter__(self) -> Iterator[T_co]: ...

    def cancel(self) -> object:
        """End it, from any thread."""
        ...


class RpcTransport:
    """Calls a server over gRPC. `timeout_s` bounds every call, whole streams included, but not loading a model."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        secure: bool = False,
        api_key: str | None = None,
        timeout_s: float | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.address = f"{'grpcs' if secure else 'grpc'}://{host}:{port}"
        self.is_here = is_loopback(host)
        self._timeout_s = timeout_s
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        target, options = f"{host}:{port}", _options(host)
        if secure:
            trust = (None, None, None) if tls is None else (tls.ca, tls.key, tls.cert)
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(*trust), options)
        else:
            self._channel = grpc.insecure_channel(target, options)

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        return self._events("Inference/Generate", to_proto(request))

    def run(self, request: RunRequest) -> Iterator[Event]:
        return self._events("Inference/Run", to_proto(request))

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        return self._events("Inference/Gradients", to_proto(request))

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        return self._events("Inference/Sweep", to_proto(request))

    def models(self) -> list[ModelInfo]:
        return self._values(ModelInfo, self._unary("Models/List", pb.ListRequest(), pb.ModelList).models)

    def describe(self, model: str = "") -> ModelInfo:
        return self._values(ModelInfo, [self._unary("Models/Describe", pb.ModelRequest(model=model), pb.ModelInfo)])[0]

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        for message in self._stream("Models/Load", to_proto(request), pb.LoadProgress, None):
            yield from self._values(LoadProgress, [message])

    def unload(self, model: str) -> None:
        self._unary("Models/Unload", pb.ModelRequest(model=model), pb.Empty)

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        return self._values(Tokenized, [self._unary("Models/Tokenize", to_proto(request), pb.Tokenized)])[0]

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        if not name:
            raise NotFound("weights needs a name; weight_names() lists them")
        request = pb.WeightsRequest(model=model, name=name)
        data, head = bytearray(), pb.WeightChunk()
        for chunk in self._stream("Models/Weights", request, pb.WeightChunk, self._timeout_s):
            head = chunk if chunk.offset == 0 else head
            if chunk.offset != len(data):
                raise Internal(f"a piece of weight {name!r} is missing: at byte {chunk.offset} of {len(data)} received")
            data += chunk.data
            if watch is not None:
                watch(len(data), math.prod(head.shape) * numpy_dtype(head.dtype).itemsize)
        if not head.name:
            raise Internal(f"{self.address} sent nothing for weight {name!r}")
        return Tensor(head.dtype, tuple(head.shape), bytes(data)).numpy()

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        chunks = self._stream("Models/Weights", pb.WeightsRequest(model=model), pb.WeightChunk, self._timeout_s)
        return {chunk.name: tuple(chunk.shape) for chunk in chunks}

    def captures(self, model: str = "") -> list[StoredCapture]:
        listed = self._unary("Captures/List", pb.ModelRequest(model=model), pb.CaptureList)
        return self._values(StoredCapture, listed.captures)

    def capture(self, capture_id: str, model: str = "") -> Array:
        for event in self._events("Captures/Get", pb.CaptureRequest(model=model, id=capture_id)):
            if isinstance(event, TensorFrame):
                return event.tensor.numpy()
        raise Internal(f"{self.address} sent nothing for capture {capture_id!r}")

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        self._unary("Captures/Delete", pb.CaptureRequest(model=model, id=capture_id), pb.Empty)

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        return self._values(SaeInfo, [self._unary("Saes/Load", to_proto(request), pb.SaeInfo)])[0]

    def send_sae(self, part: SaePart) -> SaeReceived:
        return self._values(SaeReceived, [self._unary("Saes/Send", to_proto(part), pb.SaeReceived)])[0]

    def saes(self, model: str = "") -> list[SaeInfo]:
        return self._values(SaeInfo, self._unary("Saes/List", pb.ModelRequest(model=model), pb.SaeList).saes)

    def unload_sae(self, name: str, model: str = "") -> None:
        self._unary("Saes/Unload", pb.SaeRequest(name=name, model=model), pb.Empty)

    def create_session(self, request: CreateSessionRequest) -> Session:
        return self._values(Session, [self._unary("Sessions/Create", to_proto(request), pb.Session)])[0]

    def update_session(self, request: UpdateSessionRequest) -> Session:
        return self._values(Session, [self._unary("Sessions/Update", to_proto(request), pb.Session)])[0]

    def session(self, session_id: str) -> Session:
        return self._values(Session, [self._unary("Sessions/Get", pb.SessionRequest(id=session_id), pb.Session)])[0]

    def sessions(self) -> list[Session]:
        return self._values(Session, self._unary("Sessions/List", pb.ListRequest(), pb.SessionList).sessions)

    def delete_session(self, session_id: str) -> None:
        self._unary("Sessions/Delete", pb.SessionRequest(id=session_id), pb.Empty)

    def activity(self) -> ActivityReport:
        return self._values(ActivityReport, [self._unary("Activity/Get", pb.ListRequest(), pb.ActivityReport)])[0]

    def health(self) -> HealthReport:
        method = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        with translated(self.address, self._timeout_s):
            answer, call = method.with_call(
                health_pb2.HealthCheckRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
            for key, value in call.trailing_metadata() or ():
                if key == REPORT_KEY:
                    return from_json(HealthReport, json.loads(value))
        ready = answer.status == health_pb2.HealthCheckResponse.SERVING
        return HealthReport(ready, "ready" if ready else "not serving")

    def close(self) -> None:
        self._channel.close()

    def _events(self, method: str, request: ProtoMessage) -> Iterator[Event]:
        call = self._started(method, request, bytes, self._timeout_s)
        return Closable(self._decoded(call), call.cancel)

    def _decoded(self, call: _Call[bytes]) -> Iterator[Event]:
        assembler = FrameAssembler()
        for message in self._answers(call, self._timeout_s):
            with translated(self.address, self._timeout_s):
                events = list(read_events(message, assembler))
            yield from events

    def _values(self, cls: type[Any], messages: Any) -> list[Any]:
        with translated(self.address, self._timeout_s):
            return [from_proto(cls, message) for message in messages]

    def _unary(self, method: str, request: ProtoMessage, answer: type[M]) -> M:
        call = self._channel.unary_unary(f"/probewire.v1.{method}", type(request).SerializeToString, answer.FromString)
        with translated(self.address, self._timeout_s):
            return call(request, timeout=self._timeout_s, metadata=self._metadata)

    def _stream(self, method: str, request: ProtoMessage, answer: type[M], timeout_s: float | None) -> Iterator[M]:
        return self._answers(self._started(method, request, answer.FromString, timeout_s), timeout_s)

    def _started(
        self, method: str, request: ProtoMessage, read: Callable[[bytes], T], timeout_s: float | None
    ) -> _Call[T]:
        start = self._channel.unary_stream(f"/probewire.v1.{method}", type(request).SerializeToString, read)
        with translated(self.address, timeout_s):
            return start(request, timeout=timeout_s, metadata=self._metadata)

    def _answers(self, call: _Call[T], timeout_s: float | None) -> Iterator[T]:
        with translated(self.address, timeout_s):
            try:
                yield from call
            finally:
                call.cancel()


def _options(host: str) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),  # the server's own limit answers with a reason
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_S * 1000)),
        ("grpc.enable_http_proxy", 0 if is_loopback(host) else 1),
    ]
