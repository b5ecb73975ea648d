"""The client's side of REST: JSON requests; tensors come as length-delimited protobuf or as safetensors bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, TypeVar

import httpx

from ...protos.activity import ActivityReport
from ...protos.gradients import GradientsRequest
from ...protos.hosts import is_loopback
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, GenerateRequest, ModelInfo, RunRequest, StoredCapture, Tokenized, TokenizeRequest
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.sweeps import SweepRequest
from ...protos.tensors import Array
from . import rest_calls
from .base import Watch
from .closable import Closable
from .gathered import Gathered
from .rest_calls import Download, Exchange
from .rest_errors import Deadline, error_of, translated
from .rest_interrupt import Interrupt
from .tls import Tls

__all__ = ["RestTransport", "address_of", "http_options", "timeout"]

CONNECT_TIMEOUT_S = 10.0
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""A call waits for a connection of its own in nobody's queue: the server's has words."""

T = TypeVar("T")


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
        self.address, self.is_here = address_of(host, port, path, secure), is_loopback(host)
        self._timeout_s = timeout_s
        self._http = httpx.Client(**http_options(self.address, self.is_here, api_key, timeout_s, tls))

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        return self._stream(rest_calls.generate(request))

    def run(self, request: RunRequest) -> Iterator[Event]:
        return self._stream(rest_calls.run(request))

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        return self._stream(rest_calls.gradients(request))

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        return self._stream(rest_calls.sweep(request))

    def models(self) -> list[ModelInfo]:
        return self._unary(rest_calls.models())

    def describe(self, model: str = "") -> ModelInfo:
        return self._unary(rest_calls.describe(model))

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        return self._stream(rest_calls.load(request))

    def unload(self, model: str) -> None:
        self._unary(rest_calls.unload(model))

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        return self._unary(rest_calls.tokenize(request))

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        return self._gathered(rest_calls.weights(name, model, watch))

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        return self._unary(rest_calls.weight_names(model))

    def captures(self, model: str = "") -> list[StoredCapture]:
        return self._unary(rest_calls.captures(model))

    def capture(self, capture_id: str, model: str = "") -> Array:
        return self._gathered(rest_calls.capture(capture_id, model))

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        self._unary(rest_calls.delete_capture(capture_id, model))

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        return self._unary(rest_calls.load_sae(request))

    def send_sae(self, part: SaePart) -> SaeReceived:
        return self._unary(rest_calls.send_sae(part))

    def saes(self, model: str = "") -> list[SaeInfo]:
        return self._unary(rest_calls.saes(model))

    def unload_sae(self, name: str, model: str = "") -> None:
        self._unary(rest_calls.unload_sae(name, model))

    def create_session(self, request: CreateSessionRequest) -> Session:
        return self._unary(rest_calls.create_session(request))

    def update_session(self, request: UpdateSessionRequest) -> Session:
        return self._unary(rest_calls.update_session(request))

    def session(self, session_id: str) -> Session:
        return self._unary(rest_calls.session(session_id))

    def sessions(self) -> list[Session]:
        return self._unary(rest_calls.sessions())

    def delete_session(self, session_id: str) -> None:
        self._unary(rest_calls.delete_session(session_id))

    def activity(self) -> ActivityReport:
        return self._unary(rest_calls.activity())

    def health(self) -> HealthReport:
        return self._unary(rest_calls.health())

    def close(self) -> None:
        self._http.close()

    def _unary(self, call: Exchange[T]) -> T:
        with translated(self.address, self._timeout_s):
            response = self._http.request(call.verb, call.path, json=call.body, params=call.params)
        return call.answer(response, self.address)

    def _stream(self, call: Download[T]) -> Closable[T]:
        interrupt = Interrupt()
        return Closable(self._read(call, interrupt), interrupt)

    def _read(self, call: Download[T], interrupt: Interrupt) -> Iterator[T]:
        timeout_s = self._timeout_s if call.is_bounded else None
        with (
            translated(self.address, timeout_s),
            self._http.stream(
                call.verb,
                call.path,
                json=call.body,
                params=call.params,
                headers=call.headers,
                timeout=timeout(timeout_s),
            ) as response,
        ):
            if not response.is_success:
                response.read()
                raise error_of(response, self.address)
            interrupt.hold(response)
            decoder, deadline = call.decoder(response.headers), Deadline(self.address, timeout_s)
            for chunk in response.iter_bytes():
                deadline.check()
                yield from decoder.feed(chunk)
        decoder.close()

    def _gathered(self, call: Gathered[Download[Any], T]) -> T:
        with closing(self._stream(call.stream)) as items:
            for item in items:
                call.hear(item)
        return call.whole()


def address_of(host: str, port: int, path: str, secure: bool) -> str:
    """As users write it."""
    return f"{'https' if secure else 'http'}://{host}:{port}{path}"


def http_options(
    address: str, is_here: bool, api_key: str | None, timeout_s: float | None, tls: Tls | None
) -> dict[str, Any]:
    """How an httpx client behaves."""
    return {
        "base_url": address,
        "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": timeout(timeout_s),
        "trust_env": not is_here,  # a proxy cannot reach this machine
        "verify": True if tls is None else tls.context,
        "limits": UNLIMITED,
    }


def timeout(timeout_s: float | None) -> httpx.Timeout:
    """Of each wait."""
    return httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
