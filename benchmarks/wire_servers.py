"""Servers of one 512 × 4096 bfloat16 tensor, a child process each: python wire_servers.py ours|sync|aio|json.

`ours` is probewire's own gRPC API over a stand-in that makes its frame from an array for every request. `sync` and
`aio` stream the same bytes, ready made, in messages of 1 MiB. `json` writes nested lists, as most servers do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import grpc
import grpc.aio
import ml_dtypes
import numpy as np
from child import answer_lines

from probewire.protos.model import Event, Finished, InputStarted, RunRequest, Started, TensorFrame, Usage
from probewire.protos.tensors import Tensor
from probewire.server.api.grpc.service import RpcServer, admit_from_the_gateway
from probewire.server.memory import keep_freed_memory
from probewire.server.service import Operations

__all__ = ["METHOD", "N_BYTES", "SHAPE"]

SHAPE = (512, 4096)
N_BYTES = 512 * 4096 * 2
METHOD = "/bare.Wire/Get"
CHUNK = 1 << 20

ARRAY = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32).astype(ml_dtypes.bfloat16)
STARTED = Started("r", "stand-in", "", "none", "cpu", "bfloat16", "none", {}, (), (InputStarted("input", (), ()),))


class StandIn:
    """As much of `Operations` as a run needs."""

    async def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        """Started, then a frame and the end together, as a worker hands them over."""
        yield [STARTED]
        positions = tuple(range(SHAPE[0]))
        frame = TensorFrame("input", 0, "hook0", ("resid_post.0",), positions, 0, Tensor.of(ARRAY[None]))
        yield [frame, Finished("input", "run", Usage(SHAPE[0], 0))]


def ours() -> int:
    """probewire's server, in a process set up as its own are; gives its port."""
    keep_freed_memory()

    async def start() -> int:
        server = RpcServer(cast("Operations", StandIn()), admit_from_the_gateway, max_request_bytes=64 << 20)
        port = server.bind("127.0.0.1:0")
        await server.start()
        _KEPT.append(server)
        return port

    return _on_a_loop(start)


def bare_sync() -> int:
    """grpcio's threaded server."""
    chunks = _chunks()

    def get(request: bytes, context: Any) -> Iterator[bytes]:
        return iter(chunks)

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_handler(get),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _KEPT.append(server)
    return port


def bare_aio() -> int:
    """grpcio's asyncio server."""
    chunks = _chunks()

    async def get(request: bytes, context: Any) -> None:
        for chunk in chunks:
            await context.write(chunk)

    async def start() -> int:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((_handler(get),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        _KEPT.append(server)
        return port

    return _on_a_loop(start)


def json_lists() -> int:
    """Nested lists over HTTP, written anew for every request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = json.dumps({"data": ARRAY.astype(np.float32).tolist()}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


_KEPT: list[Any] = []
"""Servers that would stop when nothing holds them."""


def _chunks() -> list[bytes]:
    data = ARRAY.tobytes()
    return [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]


def _handler(get: Callable[..., Any]) -> grpc.GenericRpcHandler:
    service, method = METHOD.strip("/").split("/")
    return grpc.method_handlers_generic_handler(service, {method: grpc.unary_stream_rpc_method_handler(get)})


def _on_a_loop(start: Callable[[], Awaitable[int]]) -> int:
    """Start an asyncio server on a loop that goes on in a thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def started() -> int:
        return await start()

    return asyncio.run_coroutine_threadsafe(started(), loop).result()


if __name__ == "__main__":
    servers = {"ours": ours, "sync": bare_sync, "aio": bare_aio, "json": json_lists}
    answer_lines(lambda question: question, {"port": servers[sys.argv[1]]()})
