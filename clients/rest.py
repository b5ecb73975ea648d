"""The client's side of REST: JSON requests; tensors come as length-delimited protobuf or as safetensors bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import safetensors

from ..protos.activity import ActivityReport
from ..protos.delimited import MEDIA_TYPE, DelimitedDecoder
from ..protos.error_body import error_from_json
from ..protos.errors import DeadlineExceeded, Internal, NotFound
from ..protos.gradients import GradientsRequest
from ..protos.hosts import is_loopback
from ..protos.loading import HealthReport, LoadProgress, LoadRequest
from ..protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ..protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ..protos.service import InferenceRequest
from ..protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..protos.sweeps import SweepRequest
from ..protos.tensors import Array, Tensor
from ..protos.wire import from_json, to_json
from .closable import Closable
from .rest_errors import error_of, readable, translated
from .rest_interrupt import Interrupt
from .tls import Tls
from .transport import Watch

__all__ = ["RestTransport"]

CONNECT_TIMEOUT_S = 10.0
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


class RestTransport:
    """Calls a server over HTTP. `timeout_s` bounds every call, whole streams included, but not loading a model."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        path: str = "",
        secure: bool = False,
        api_key: str | None = None,
        timeout_s: float | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.is_here = is_loopback(host)
        self.address = f"{'https' if secure else 'http'}://{host}:{port}{path}"
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=self.address,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            trust_env=not self.is_here,  # a proxy cannot reach this machine
            verify=True if tls is None else tls.context,
        )

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        return self._events("/v1/generate", request)

    def run(self, request: RunRequest) -> Iterator[Event]:
        return self._events("/v1/run", request)

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        return self._events("/v1/gradients", request)

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        return self._events("/v1/sweep", request)

    def models(self) -> list[ModelInfo]:
        answer = self._json("GET", "/v1/models")
        with readable(self.address):
            return [from_json(ModelInfo, item) for item in answer["models"]]

    def describe(self, model: str = "") -> ModelInfo:
        answer = self._json("GET", f"/v1/models/{quote(model)}")
        with readable(self.address):
            surplus = ("object", "created", "owned_by")  # OpenAI's fields, in the same object
            return from_json(ModelInfo, {key: value for key, value in answer.items() if key not in surplus})

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        body = {**to_json(request), "stream": True}
        with self._stream("POST", "/v1/models/load", body, timeout_s=None) as response:
            for line in response.iter_lines():
                with readable(self.address):
                    answer = json.loads(line)
                    if "error" not in answer:
                        answer = from_json(LoadProgress, answer)
                if not isinstance(answer, LoadProgress):
                    raise error_from_json(answer)
                yield answer

    def unload(self, model: str) -> None:
        self._json("POST", "/v1/models/unload", {"model": model})

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        answer = self._json("POST", "/v1/tokenize", to_json(request))
        with readable(self.address):
            return from_json(Tokenized, answer)

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        if not name:
            raise NotFound("weights needs a name; weight_names() lists them")
        return self._tensor(f"/v1/weights/{quote(name)}", model, watch)

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        answer = self._json("GET", "/v1/weights", model=model)
        with readable(self.address):
            return {name: tuple(shape) for name, shape in answer["weights"].items()}

    def captures(self, model: str = "") -> list[StoredCapture]:
        answer = self._json("GET", "/v1/captures", model=model)
        with readable(self.address):
            return [from_json(StoredCapture, item) for item in answer["captures"]]

    def capture(self, capture_id: str, model: str = "") -> Array:
        if not capture_id:
            raise NotFound("capture needs an id; captures() lists them")
        return self._tensor(f"/v1/captures/{quote(capture_id)}", model, None)

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        if not capture_id:
            raise NotFound("delete_capture needs an id; captures() lists them")
        self._json("DELETE", f"/v1/captures/{quote(capture_id)}", model=model)

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        answer = self._json("POST", "/v1/saes", to_json(request))
        with readable(self.address):
            return from_json(SaeInfo, answer)

    def send_sae(self, part: SaePart) -> SaeReceived:
        answer = self._json("POST", "/v1/saes/parts", to_json(part))
        with readable(self.address):
            return from_json(SaeReceived, answer)

    def saes(self, model: str = "") -> list[SaeInfo]:
        answer = self._json("GET", f"/v1/saes?model={quote(model, safe='')}")
        with readable(self.address):
            return [from_json(SaeInfo, item) for item in answer["saes"]]

    def unload_sae(self, name: str, model: str = "") -> None:
        if not name:
            raise NotFound("an SAE has a name; saes() lists them")
        self._json("DELETE", f"/v1/saes/{quote(name, safe='')}?model={quote(model, safe='')}")

    def create_session(self, request: CreateSessionRequest) -> Session:
        return self._session("POST", "/v1/sessions", to_json(request))

    def update_session(self, request: UpdateSessionRequest) -> Session:
        return self._session("PUT", _session_path(request.id), to_json(request))

    def session(self, session_id: str) -> Session:
        return self._session("GET", _session_path(session_id))

    def sessions(self) -> list[Session]:
        answer = self._json("GET", "/v1/sessions")
        with readable(self.address):
            return [from_json(Session, item) for item in answer["sessions"]]

    def delete_session(self, session_id: str) -> None:
        self._json("DELETE", _session_path(session_id))

    def _session(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Session:
        answer = self._json(verb, path, body)
        with readable(self.address):
            return from_json(Session, answer)

    def activity(self) -> ActivityReport:
        answer = self._json("GET", "/v1/activity")
        with readable(self.address):
            return from_json(ActivityReport, answer)

    def health(self) -> HealthReport:
        with translated(self.address, self._timeout_s):
            response = self._http.get("/health")
        if response.status_code not in (200, 503):
            raise error_of(response, self.address)
        with readable(self.address):
            answer = response.json()
            return HealthReport(answer["ready"], answer["detail"], dict(answer["models"]))

    def close(self) -> None:
        self._http.close()

    def _events(self, path: str, request: InferenceRequest) -> Iterator[Event]:
        interrupt = Interrupt()
        return Closable(self._decoded(path, request, interrupt), interrupt)

    def _decoded(self, path: str, request: InferenceRequest, interrupt: Interrupt) -> Iterator[Event]:
        decoder = DelimitedDecoder()
        with self._stream("POST", path, to_json(request), accept=MEDIA_TYPE, timeout_s=self._timeout_s) as response:
            interrupt.hold(response)
            for chunk in self._chunks(response):
                yield from decoder.feed(chunk)
        decoder.close()

    def _tensor(self, path: str, model: str, watch: Watch | None) -> Array:
        data = bytearray()
        params = {"model": model} if model else {}
        with self._stream("GET", path, accept=SAFETENSORS, params=params, timeout_s=self._timeout_s) as response:
            total = int(response.headers.get("content-length", 0))
            for chunk in self._chunks(response):
                data += chunk
                if watch is not None:
                    watch(len(data), total)
        return self._only_tensor(bytes(data))

    def _only_tensor(self, data: bytes) -> Array:
        try:
            [(_, found)] = _safetensors.deserialize(data)
            return Tensor(_DTYPES[found["dtype"]], tuple(found["shape"]), bytes(found["data"])).numpy()
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise Internal(f"{self.address} sent a tensor that this version cannot read: {error}") from error

    def _json(self, verb: str, path: str, body: dict[str, Any] | None = None, *, model: str = "") -> dict[str, Any]:
        with translated(self.address, self._timeout_s):
            response = self._http.request(verb, path, json=body, params={"model": model} if model else {})
        if not response.is_success:
            raise error_of(response, self.address)
        with readable(self.address):
            return dict(response.json())

    @contextmanager
    def _stream(
        self,
        verb: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        accept: str = "*/*",
        params: dict[str, str] | None = None,
        timeout_s: float | None,
    ) -> Generator[httpx.Response]:
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        with (
            translated(self.address, timeout_s),
            self._http.stream(
                verb, path, json=body, headers={"accept": accept}, params=params, timeout=timeout
            ) as response,
        ):
            if not response.is_success:
                response.read()
                raise error_of(response, self.address)
            yield response

    def _chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """The body as it comes. httpx bounds each wait; the call as a whole is bounded here."""
        end = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        for chunk in response.iter_bytes():
            if end is not None and time.monotonic() > end:
                raise DeadlineExceeded(
                    f"{self.address} did not finish within timeout_s={self._timeout_s:g}; pass a larger timeout_s to Client"
                )
            yield chunk


def _session_path(session_id: str) -> str:
    if not session_id:
        raise NotFound("a session has an id; sessions() lists them")
    return f"/v1/sessions/{quote(session_id, safe='')}"
