"""The real faces, gRPC and REST, over a FakeService, in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fake_service import FakeService

from probewire.protos.model import Event, StoredCapture, Token
from probewire.protos.tensors import Tensor
from probewire.server.rest import create_app
from probewire.server.rpc import RpcServer


class FakeOperations:
    """A sync service as `server.service.Operations`."""

    def __init__(self, service: FakeService) -> None:
        self.service = service

    def generate(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.generate(request))

    def run(self, request: Any) -> AsyncIterator[list[Event]]:
        return _steps(self.service.run(request))

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


class FakeServer:
    """Both faces on free ports of the loopback."""

    def __init__(self, service: FakeService) -> None:
        self.service = service
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
        rpc = RpcServer(operations, max_request_bytes=1 << 20)
        self.grpc_url = f"grpc://127.0.0.1:{rpc.bind('127.0.0.1:0')}"
        await rpc.start()
        config = uvicorn.Config(
            create_app(operations, version="test"), host="127.0.0.1", port=0, log_level="warning", lifespan="off",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._uvicorn = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._uvicorn.serve())
        while not self._uvicorn.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        self.http_url = f"http://127.0.0.1:{self._uvicorn.servers[0].sockets[0].getsockname()[1]}"
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
