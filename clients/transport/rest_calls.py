"""The operations of `Service` over HTTP: what is asked where, and how its answer is read.

Functions of one name with the operations, so that the client that waits and the one that awaits make the same calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
import safetensors

from ...protos.activity import ActivityReport
from ...protos.errors import Internal, NotFound, Unavailable
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.service import InferenceRequest
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Array, Tensor
from ...protos.wire.codec import from_json, to_json
from ...protos.wire.delimited import MEDIA_TYPE, DelimitedDecoder
from ...protos.wire.error_body import error_from_json
from .base import Watch
from .gathered import Gathered
from .rest_errors import error_of, readable

__all__ = ["Download", "Exchange"]

SAFETENSORS = "application/safetensors"

_safetensors: Any = safetensors  # not annotated

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Decoder(Protocol[T_co]):
    """Reads a body piece by piece."""

    def feed(self, chunk: bytes) -> Iterable[T_co]:
        """What this piece completes; take it all before the next piece."""
        ...

    def close(self) -> None:
        """Call at the end. Raises Unavailable where it came too early."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange(Generic[T]):
    """A request with one answer, a JSON object."""

    verb: str
    path: str
    read: Callable[[dict[str, Any]], T]
    body: dict[str, Any] | None = None
    params: dict[str, str] = field(default_factory=dict[str, str])
    also: tuple[int, ...] = ()
    """Statuses that bring an answer besides those of success."""

    def answer(self, response: httpx.Response, address: str) -> T:
        """What the response says. Raises the error that it is instead, and Internal for what cannot be read."""
        if not response.is_success and response.status_code not in self.also:
            raise error_of(response, address)
        with readable(address):
            return self.read(dict(response.json()))


@dataclass(frozen=True, slots=True)
class Download(Generic[T]):
    """A request whose answer is read as it comes."""

    verb: str
    path: str
    decoder: Callable[[Mapping[str, str]], Decoder[T]]
    """Makes, of the answer's headers, what reads its body."""
    accept: str = "*/*"
    body: dict[str, Any] | None = None
    params: dict[str, str] = field(default_factory=dict[str, str])
    is_bounded: bool = True
    """Whether the client's timeout_s holds for it."""

    @property
    def headers(self) -> dict[str, str]:
        """Of the request."""
        return {"accept": self.accept}


def generate(request: GenerateRequest) -> Download[Event]:
    return _events("/v1/generate", request)


def run(request: RunRequest) -> Download[Event]:
    return _events("/v1/run", request)


def gradients(request: GradientsRequest) -> Download[Event]:
    return _events("/v1/gradients", request)


def sweep(request: SweepRequest) -> Download[Event]:
    return _events("/v1/sweep", request)


def models() -> Exchange[list[ModelInfo]]:
    return Exchange("GET", "/v1/models", _list(ModelInfo, "models"))


def describe(model: str = "") -> Exchange[ModelInfo]:
    surplus = ("object", "created", "owned_by")  # OpenAI's fields, in the same object

    def read(answer: dict[str, Any]) -> ModelInfo:
        return from_json(ModelInfo, {key: value for key, value in answer.items() if key not in surplus})

    return Exchange("GET", f"/v1/models/{quote(model)}", read)


def load(request: LoadRequest) -> Download[LoadProgress]:
    body = {**to_json(request), "stream": True}
    return Download("POST", "/v1/models/load", lambda _: _ProgressLines(), body=body, is_bounded=False)


def unload(model: str) -> Exchange[None]:
    return Exchange("POST", "/v1/models/unload", _nothing, {"model": model})


def tokenize(request: TokenizeRequest) -> Exchange[Tokenized]:
    return Exchange("POST", "/v1/tokenize", _value(Tokenized), to_json(request))


def weights(name: str, model: str = "", watch: Watch | None = None) -> Gathered[Download[Any], Array]:
    return _tensor(f"/v1/weights/{quote(_named(name, 'weights needs a name; weight_names()'))}", model, watch)


def weight_names(model: str = "") -> Exchange[dict[str, tuple[int, ...]]]:
    def read(answer: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in answer["weights"].items()}

    return Exchange("GET", "/v1/weights", read, params=_of(model))


def captures(model: str = "") -> Exchange[list[StoredCapture]]:
    return Exchange("GET", "/v1/captures", _list(StoredCapture, "captures"), params=_of(model))


def capture(capture_id: str, model: str = "") -> Gathered[Download[Any], Array]:
    return _tensor(f"/v1/captures/{quote(_named(capture_id, 'capture needs an id; captures()'))}", model, None)


def delete_capture(capture_id: str, model: str = "") -> Exchange[None]:
    path = f"/v1/captures/{quote(_named(capture_id, 'delete_capture needs an id; captures()'))}"
    return Exchange("DELETE", path, _nothing, params=_of(model))


def load_sae(request: LoadSaeRequest) -> Exchange[SaeInfo]:
    return Exchange("POST", "/v1/saes", _value(SaeInfo), to_json(request))


def send_sae(part: SaePart) -> Exchange[SaeReceived]:
    return Exchange("POST", "/v1/saes/parts", _value(SaeReceived), to_json(part))


def saes(model: str = "") -> Exchange[list[SaeInfo]]:
    return Exchange("GET", "/v1/saes", _list(SaeInfo, "saes"), params=_of(model))


def unload_sae(name: str, model: str = "") -> Exchange[None]:
    path = f"/v1/saes/{quote(_named(name, 'an SAE has a name; saes()'), safe='')}"
    return Exchange("DELETE", path, _nothing, params=_of(model))


def create_session(request: CreateSessionRequest) -> Exchange[Session]:
    return Exchange("POST", "/v1/sessions", _value(Session), to_json(request))


def update_session(request: UpdateSessionRequest) -> Exchange[Session]:
    return Exchange("PUT", _session_path(request.id), _value(Session), to_json(request))


def session(session_id: str) -> Exchange[Session]:
    return Exchange("GET", _session_path(session_id), _value(Session))


def sessions() -> Exchange[list[Session]]:
    return Exchange("GET", "/v1/sessions", _list(Session, "sessions"))


def delete_session(session_id: str) -> Exchange[None]:
    return Exchange("DELETE", _session_path(session_id), _nothing)


def activity() -> Exchange[ActivityReport]:
    return Exchange("GET", "/v1/activity", _value(ActivityReport))


def health() -> Exchange[HealthReport]:
    def read(answer: dict[str, Any]) -> HealthReport:
        return HealthReport(answer["ready"], answer["detail"], dict(answer["models"]))

    return Exchange("GET", "/health", read, also=(503,))


def _value(cls: type[T]) -> Callable[[dict[str, Any]], T]:
    return lambda answer: from_json(cls, answer)


def _list(cls: type[T], key: str) -> Callable[[dict[str, Any]], list[T]]:
    return lambda answer: [from_json(cls, item) for item in answer[key]]


def _nothing(answer: dict[str, Any]) -> None:
    del answer


def _of(model: str) -> dict[str, str]:
    return {"model": model} if model else {}


def _named(name: str, where: str) -> str:
    """The name, which may not be empty: its path would be the list's."""
    if not name:
        raise NotFound(f"{where} lists them")
    return name


def _session_path(session_id: str) -> str:
    return f"/v1/sessions/{quote(_named(session_id, 'a session has an id; sessions()'), safe='')}"


def _events(path: str, request: InferenceRequest) -> Download[Event]:
    return Download("POST", path, lambda _: DelimitedDecoder(), MEDIA_TYPE, to_json(request))


def _tensor(path: str, model: str, watch: Watch | None) -> Gathered[Download[Any], Array]:
    data = bytearray()

    def hear(piece: tuple[bytes, int]) -> None:
        chunk, n_bytes = piece
        data.extend(chunk)
        if watch is not None:
            watch(len(data), n_bytes)

    return Gathered(Download("GET", path, _Pieces, SAFETENSORS, params=_of(model)), hear, lambda: _only_tensor(data))


class _Pieces:
    """A body as it comes, each piece with the bytes that there are in all (0: not known)."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._n_bytes = int(headers.get("content-length", 0))

    def feed(self, chunk: bytes) -> Iterable[tuple[bytes, int]]:
        return ((chunk, self._n_bytes),)

    def close(self) -> None: ...


def _only_tensor(data: bytearray) -> Array:
    try:
        [(_, found)] = _safetensors.deserialize(bytes(data))
        return Tensor(_DTYPES[found["dtype"]], tuple(found["shape"]), bytes(found["data"])).numpy()
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise Internal(f"the server sent a tensor that this version cannot read: {error}") from error


class _ProgressLines:
    """JSON lines of a model that is loaded; an error may be the last."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[LoadProgress]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            with readable("the server"):
                answer = json.loads(line)
                if "error" not in answer:
                    answer = from_json(LoadProgress, answer)
            if not isinstance(answer, LoadProgress):
                raise error_from_json(answer)
            yield answer

    def close(self) -> None:
        if self._rest:
            raise Unavailable("the connection ended in the middle of an answer; send the request again")
