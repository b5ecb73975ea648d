"""Servers over pretended models, for the tests: in this process, or with real worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc.aio
import pytest

from probewire.protos import probewire_pb2 as pb
from probewire.protos.loading import LoadProgress, LoadRequest
from probewire.server.api.grpc.service import Admit, RpcServer, admit_from_the_gateway
from probewire.server.auth.callers import CALLER, local_caller
from probewire.server.config import GatewayConfig, RequestLimits, Supervision, WorkerConfig
from probewire.server.gateway.gateway import Gateway
from probewire.server.service import Operations
from probewire.server.streams import Streams

DEADLINE_S = 30.0

GENERATE = "/probewire.v1.Inference/Generate"

QUICK = Supervision(
    probe_interval_s=0.2, probe_timeout_s=2.0, probe_strikes=2, backoff_s=0.05, backoff_max_s=0.2, kill_grace_s=3.0
)

FAKES = WorkerConfig(
    model="", id="", backend="auto", factory="fake_worker:make", limits=RequestLimits(1 << 20), drain_s=1.5
)


@dataclass
class Served:
    """A running server and how to call it."""

    channel: grpc.aio.Channel
    operations: Operations
    port: int

    def generate(self, model: str = "", n: int = 3, **script: object) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """Start a generation; the keyword arguments are the fake's script."""
        return self.channel.unary_stream(GENERATE)(request_bytes(model, n, **script))

    async def unary(self, method: str, request: bytes = b"") -> bytes:
        """Call a unary method."""
        return await self.channel.unary_unary(method)(request)

    async def counts(self, model: str = "") -> tuple[int, ...]:
        """Requests active and cancelled inside the fake, and steps it made."""
        request = pb.TokenizeRequest(input=pb.Input(name="input", text="x"), model=model).SerializeToString()
        return tuple(pb.Tokenized.FromString(await self.unary("/probewire.v1.Models/Tokenize", request)).token_ids)


def request_bytes(model: str = "", n: int = 3, **script: object) -> bytes:
    """A serialised GenerateRequest for the fake."""
    return pb.GenerateRequest(
        model=model,
        inputs=[pb.Input(name="input", text=json.dumps(script))],
        sampling=pb.Sampling(max_new_tokens=n),
    ).SerializeToString()


async def drained(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> list[bytes]:
    """What is left of a stream, its first messages read or not."""
    messages: list[bytes] = []
    while isinstance(message := await call.read(), bytes):
        messages.append(message)
    return messages


async def broken(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> grpc.aio.AioRpcError:
    """The error that ends a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await drained(call)
    return raised.value


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Poll until true; fail after DEADLINE_S."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not await condition():
        assert loop.time() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def served(
    operations: Operations,
    *,
    streams: Streams | None = None,
    max_request_bytes: int = 1 << 20,
    admit: Admit = admit_from_the_gateway,
) -> AsyncGenerator[Served]:
    """The gRPC API over some operations, on a free port of this process."""
    server = RpcServer(operations, admit, max_request_bytes=max_request_bytes, streams=streams)
    port = server.bind("127.0.0.1:0")
    await server.start()
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Served(channel, operations, port)
    await server.stop(0)


@asynccontextmanager
async def gateway(
    *models: str, supervision: Supervision = QUICK, **config: Any
) -> AsyncGenerator[tuple[Gateway, Served]]:
    """A gateway with a worker process of the fake for each model, behind the gRPC API."""
    CALLER.set(local_caller())
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, sys.path)])
    with mock.patch.dict(os.environ, PYTHONPATH=path):
        it = Gateway(GatewayConfig(worker=replace(FAKES, backend="torch"), supervision=supervision, **config))
        try:
            await asyncio.gather(*(loaded(it, model) for model in models))
            async with served(it, streams=it.streams) as server:
                yield it, server
        finally:
            await it.close()


async def loaded(it: Gateway, model: str) -> list[LoadProgress]:
    """Load a fake under its own name; gives the progress."""
    return [step async for step in it.load(LoadRequest(model))]
