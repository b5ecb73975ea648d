"""The real APIs, gRPC and REST, over a FakeService, in a thread of their own."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from fake_service import FakeService

from probewire.protos.model import Event, StoredCapture, Token
from probewire.protos.operations import Operation
from probewire.protos.tensors import Tensor
from probewire.server.api.grpc.service import RpcServer, admit_at_the_door
from probewire.server.api.http.app import create_app
from probewire.server.auth.access import Access
from probewire.server.auth.users import Users


class FakeOperations:
    """A sync service as `server.service.Operations`."""

    def __init__(self, service: FakeService) -> None:
        self.service = service

    def generate(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.generate(request))

    def run(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.run(request))

    def gradients(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.gradients(request))

    def sweep(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.sweep(request))

    async def other(self, operation: Operation, *args: Any) -> Any:
        return getattr(self.service, operation.call)(*args)

    async def load(self, request: Any) -> AsyncIterator[Any]:
        for progress in self.service.load(request):
            yield progress

    async def models(self) -> Any:
        return self.service.models()

    async def describe(self, model: str) -> Any:
        return self.service.describe(model)

    async def unload(self, model: str) -> None:
        self.service.unload(model)

    async def tokenize(self, request: Any) -> Any:
        return self.service.tokenize(request)

    async def tokenizer_info(self, model: str) -> Any:
        return self.service.tokenizer_info(model)

    async def weight_names(self, model: str) -> Any:
        return self.service.weight_names(model)

    async def weights(self, name: str, model: str) -> Tensor:
        return Tensor.of(self.service.weights(name, model))

    async def captures(self, model: str) -> Any:
        return self.service.captures(model)

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        array = self.service.capture(capture_id, model)
        return self.service.stored[capture_id][0], Tensor.of(array)

    async def delete_capture(self, capture_id: str, model: str) -> None:
        self.service.delete_capture(capture_id, model)

    async def load_sae(self, request: Any) -> Any:
        return self.service.load_sae(request)

    async def send_sae(self, part: Any) -> Any:
        return self.service.send_sae(part)

    async def saes(self, model: str) -> Any:
        return self.service.saes(model)

    async def unload_sae(self, name: str, model: str) -> None:
        self.service.unload_sae(name, model)

    async def load_variant(self, request: Any) -> Any:
        return self.service.load_variant(request)

    async def send_variant(self, part: Any) -> Any:
        return self.service.send_variant(part)

    async def variants(self, model: str) -> Any:
        return self.service.variants(model)

    async def variant(self, name: str, model: str) -> Any:
        return self.service.variant(name, model)

    async def variant_part(self, request: Any) -> Any:
        return self.service.variant_part(request)

    async def unload_variant(self, name: str, model: str) -> None:
        self.service.unload_variant(name, model)

    async def create_session(self, request: Any) -> Any:
        return self.service.create_session(request)

    async def update_session(self, request: Any) -> Any:
        return self.service.update_session(request)

    async def session(self, session_id: str) -> Any:
        return self.service.session(session_id)

    async def sessions(self) -> Any:
        return self.service.sessions()

    async def delete_session(self, session_id: str) -> None:
        self.service.delete_session(session_id)

    async def activity(self) -> Any:
        return self.service.activity()

    async def health(self) -> Any:
        return self.service.health()


async def _steps(events: Iterator[Event]) -> AsyncIterator[list[Event]]:
    """The events of one step together, as a worker sends them."""
    batch: list[Event] = []
    pending: asyncio.Task[Event | None] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(asyncio.to_thread(next, events, None))
            if (event := await asyncio.shield(pending)) is None:
                break
            batch.append(event)
            if isinstance(event, Token) or len(batch) == 1:
                yield batch
                batch = []
        if batch:
            yield batch
    finally:
        if pending is not None:
            await asyncio.wait([pending])  # a generator that runs cannot be closed
        events.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator


@dataclass(frozen=True)
class ServerTls:
    """PEM files of a server with TLS."""

    cert: Path
    key: Path
    clients_ca: Path | None = None
    """Only callers with a certificate of this CA are let in."""

    def credentials(self) -> grpc.ServerCredentials:
        ca = None if self.clients_ca is None else self.clients_ca.read_bytes()
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)

    def uvicorn(self) -> dict[str, Any]:
        wanted = (
            {} if self.clients_ca is None else {"ssl_ca_certs": self.clients_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
        )
        return {"ssl_certfile": self.cert, "ssl_keyfile": self.key, **wanted}


class FakeServer:
    """Both APIs on free ports of the loopback; with `users`, only they get in."""

    def __init__(self, service: FakeService, *, tls: ServerTls | None = None, users: Users | None = None) -> None:
        self.service = service
        self._tls, self._access = tls, Access(users)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        operations = FakeOperations(self.service)
        rpc = RpcServer(operations, admit_at_the_door(self._access), max_request_bytes=1 << 20)
        s, credentials, options = (
            ("", None, {}) if self._tls is None else ("s", self._tls.credentials(), self._tls.uvicorn())
        )
        self.grpc_url = f"grpc{s}://127.0.0.1:{rpc.bind('127.0.0.1:0', credentials)}"
        await rpc.start()
        config = uvicorn.Config(
            create_app(operations, version="test", access=self._access), host="127.0.0.1", port=0, log_config=None,
            lifespan="off", timeout_graceful_shutdown=1, **options,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._uvicorn.serve())
        while not self._uvicorn.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        self.http_url = f"http{s}://127.0.0.1:{self._uvicorn.servers[0].sockets[0].getsockname()[1]}"
        self._ready.set()
        await serving
        await rpc.stop(0)

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(10)


def wait_for(condition: Any, timeout_s: float = 5.0) -> bool:
    """Whether `condition()` becomes true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False
