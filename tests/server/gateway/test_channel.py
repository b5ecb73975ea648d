"""A connection that is closed under a call is an error that its caller is told; a cancellation is the caller's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from probewire.protos.errors import ProbewireError, Unavailable
from probewire.server.gateway.channel import WorkerChannel

CALLS: dict[str, Callable[[WorkerChannel], Awaitable[Any]]] = {
    "unary": lambda channel: channel.unary("/probewire.v1.Worker/Status", b""),
    "bounded": lambda channel: channel.unary("/probewire.v1.Worker/Status", b"", timeout_s=30.0),
    "health": lambda channel: channel.health(30.0),
    "stream": lambda channel: anext(channel.stream("/probewire.v1.Inference/Run", b"")),
}


class _Silent(grpc.GenericRpcHandler):
    """Takes every call and answers none."""

    def __init__(self) -> None:
        self.taken = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def handle(*_: Any) -> None:
            self.taken.set()
            await asyncio.sleep(3600)

        return grpc.stream_stream_rpc_method_handler(handle)


@asynccontextmanager
async def silent(folder: Path, explained: ProbewireError | None) -> AsyncGenerator[tuple[WorkerChannel, _Silent]]:
    async def explain() -> ProbewireError | None:
        return explained

    server, handler = grpc.aio.server(), _Silent()
    server.add_generic_rpc_handlers((handler,))
    address = f"unix:{folder / 's'}"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield WorkerChannel(address, explain), handler
    finally:
        await server.stop(0)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("explained", [None, Unavailable("the worker died")])
def test_a_channel_that_is_closed_under_a_call(name: str, explained: ProbewireError | None, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(30), silent(tmp_path, explained) as (channel, handler):
            call = asyncio.ensure_future(CALLS[name](channel))
            await handler.taken.wait()
            await channel.close()
            with pytest.raises(Unavailable, match="the worker died" if explained else "was closed; retry"):
                await call

    asyncio.run(scenario())


@pytest.mark.parametrize("name", CALLS)
def test_a_caller_who_is_cancelled_is_just_that(name: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(30), silent(tmp_path, None) as (channel, handler):
            call = asyncio.ensure_future(CALLS[name](channel))
            await handler.taken.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await channel.close()

    asyncio.run(scenario())
