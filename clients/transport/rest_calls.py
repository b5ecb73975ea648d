"""The operations over HTTP: what is asked where, and how its answer is read.

The same for the client that waits and the one that awaits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
import safetensors

from ...protos.errors import Internal, NotFound, Unavailable
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import ModelInfo
from ...protos.operations import BY_CALL, Operation
from ...protos.tensors import Array, Tensor
from ...protos.wire.codec import from_json, to_json
from ...protos.wire.delimited import MEDIA_TYPE, DelimitedDecoder
from ...protos.wire.error_body import error_from_json
from .base import Watch
from .gathered import Gathered
from .rest_errors import error_of, readable

__all__ = ["Download", "Exchange", "call_of"]

SAFETENSORS = "application/safetensors"
_PLACE = re.compile(r"\{(\w+)(:path)?\}")

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


def call_of(operation: str | Operation, *args: Any) -> Exchange[Any] | Download[Any] | Gathered[Download[Any], Any]:
    """The call of an operation, by its row or by the name that it has in `Service`."""
    if isinstance(operation, str) and operation in _OWN:
        return _OWN[operation](*args)
    row = BY_CALL[operation] if isinstance(operation, str) else operation
    verb, _, template = row.route.partition(" ")
    if row.kind == "events":
        return Download(verb, template, lambda _: DelimitedDecoder(), MEDIA_TYPE, to_json(*args))
    given = dict(zip(row.fields, args, strict=False)) if isinstance(row.request, str) else to_json(*args)
    path = _PLACE.sub(lambda place: _placed(row, place, given), template)
    for name, _ in _PLACE.findall(template) if isinstance(row.request, str) else ():
        del given[name]
    if verb in ("POST", "PUT"):
        return Exchange(verb, path, _reader(row), given)
    return Exchange(verb, path, _reader(row), params={name: value for name, value in given.items() if value})


def _placed(row: Operation, place: re.Match[str], given: dict[str, Any]) -> str:
    """A part of a path. It may not be empty, as the path would be another's."""
    name, takes_slashes = place.groups()
    if not given.get(name):
        lists = next(o.call for o in BY_CALL.values() if o.service == row.service and o.kind == "list")
        raise NotFound(f"{row.call} needs {'an' if name[0] in 'aeiou' else 'a'} {name}; {lists}() lists them")
    return quote(given[name], safe="/" if takes_slashes else "")


def _reader(row: Operation) -> Callable[[dict[str, Any]], Any]:
    cls: type[Any] | None = row.answer
    if cls is None:
        return lambda answer: None
    if row.kind == "list":
        return lambda answer: [from_json(cls, item) for item in answer[row.listed.partition(".")[2]]]
    return lambda answer: from_json(cls, answer)


def describe(model: str = "") -> Exchange[ModelInfo]:
    surplus = ("object", "created", "owned_by")  # OpenAI's fields, in the same object

    def read(answer: dict[str, Any]) -> ModelInfo:
        return from_json(ModelInfo, {key: value for key, value in answer.items() if key not in surplus})

    return Exchange("GET", f"/v1/models/{quote(model)}", read)


def load(request: LoadRequest) -> Download[LoadProgress]:
    body = {**to_json(request), "stream": True}
    return Download("POST", "/v1/models/load", lambda _: _ProgressLines(), body=body, is_bounded=False)


def weights(name: str, model: str = "", watch: Watch | None = None) -> Gathered[Download[Any], Array]:
    return _tensor(f"/v1/weights/{quote(_named(name, 'weights needs a name; weight_names()'))}", model, watch)


def weight_names(model: str = "") -> Exchange[dict[str, tuple[int, ...]]]:
    def read(answer: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in answer["weights"].items()}

    return Exchange("GET", "/v1/weights", read, params=_of(model))


def capture(capture_id: str, model: str = "") -> Gathered[Download[Any], Array]:
    return _tensor(f"/v1/captures/{quote(_named(capture_id, 'capture needs an id; captures()'))}", model, None)


def health() -> Exchange[HealthReport]:
    def read(answer: dict[str, Any]) -> HealthReport:
        return HealthReport(answer["ready"], answer["detail"], dict(answer["models"]))

    return Exchange("GET", "/health", read, also=(503,))


def _of(model: str) -> dict[str, str]:
    return {"model": model} if model else {}


def _named(name: str, where: str) -> str:
    """The name, which may not be empty: its path would be the list's."""
    if not name:
        raise NotFound(f"{where} lists them")
    return name


def _tensor(path: str, model: str, watch: Watch | None) -> Gathered[Download[Any], Array]:
    data = bytearray()

    def hear(piece: tuple[bytes, int]) -> None:
        chunk, n_bytes = piece
        data.extend(chunk)
        if watch is not None:
            watch(len(data), n_bytes)

    return Gathered(Download("GET", path, _Pieces, SAFETENSORS, params=_of(model)), hear, lambda: _only_tensor(data))


_OWN: dict[str, Callable[..., Any]] = {f.__name__: f for f in (describe, load, weights, weight_names, capture, health)}
"""What is more than a JSON object there and one back."""


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
