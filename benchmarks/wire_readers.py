"""Readers of the tensor that wire_servers.py sends, a child process each, so that they share no allocator.

python wire_readers.py KIND ADDRESS. Asked {"repeats": n}, it reads the tensor n times, one after the other, and answers
{"seconds"}. KIND is `ours` (probewire's client), `sync` or `aio` (bare gRPC, joined into an array), `sync-drop` or
`aio-drop` (bare, dropped as it comes), `json`, or `stored` (a capture kept by a server of the default model).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterable, Callable, Iterable
from http.client import HTTPConnection
from typing import Any

import grpc
import grpc.aio
import ml_dtypes
import numpy as np
from child import answer_lines
from numpy.typing import NDArray
from wire_servers import METHOD, N_BYTES, SHAPE

from probewire.clients import Client, Input
from probewire.clients.transport.endpoint import Endpoint
from probewire.clients.transport.rpc import RpcTransport
from probewire.protos.model import RunRequest, TensorFrame

Read = Callable[[], object]
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


def ours(port: int) -> Read:
    transport = RpcTransport(Endpoint("grpc", "127.0.0.1", port))
    request = RunRequest((Input(token_ids=(1,)),))

    def read() -> NDArray[Any]:
        (array,) = [
            event.tensor.numpy() for event in transport.listen("run", request) if isinstance(event, TensorFrame)
        ]
        assert array.shape == (1, *SHAPE)
        assert array.dtype == ml_dtypes.bfloat16
        return array

    return read


def bare_sync(port: int, *, keep: bool) -> Read:
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    start: Callable[[bytes], Iterable[bytes]] = channel.unary_stream(METHOD)

    def read() -> object:
        if keep:
            return _joined(list(start(b"")))
        n_bytes = sum(len(message) for message in start(b""))
        assert n_bytes == N_BYTES
        return n_bytes

    return read


def bare_aio(port: int, *, keep: bool) -> Read:
    async def connect() -> Callable[[bytes], AsyncIterable[bytes]]:
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        return channel.unary_stream(METHOD)

    runner = asyncio.Runner()
    start = runner.run(connect())

    async def read() -> object:
        if keep:
            return _joined([message async for message in start(b"")])
        n_bytes = 0
        async for message in start(b""):
            n_bytes += len(message)
        assert n_bytes == N_BYTES
        return n_bytes

    return lambda: runner.run(read())


def _joined(messages: list[bytes]) -> NDArray[Any]:
    array: NDArray[Any] = np.frombuffer(b"".join(messages), dtype=np.dtype(ml_dtypes.bfloat16))
    return array.reshape(SHAPE)


def json_lists(port: int) -> Read:
    connection = HTTPConnection("127.0.0.1", port)

    def read() -> NDArray[Any]:
        connection.request("GET", "/")
        array = np.array(json.loads(connection.getresponse().read())["data"], dtype=ml_dtypes.bfloat16)
        assert array.shape == SHAPE
        return array

    return read


def stored(address: str) -> Read:
    """A capture that waits in the worker behind the gateway."""
    client = Client(address)
    (kept,) = client.captures()

    def read() -> NDArray[Any]:
        array = client.capture(kept.id)
        assert array.shape == kept.shape
        return array

    return read


def reader_of(kind: str, address: str) -> Read:
    """The reader called `kind`, connected."""
    kind, _, drop = kind.partition("-")
    if kind == "stored":
        return stored(address)
    if kind in ("sync", "aio"):
        return {"sync": bare_sync, "aio": bare_aio}[kind](int(address), keep=not drop)
    return {"ours": ours, "json": json_lists}[kind](int(address))


def main() -> None:
    """Answer until told to end."""
    read = reader_of(*sys.argv[1:])

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        for _ in range(question["repeats"]):
            read()
        return {"seconds": time.perf_counter() - start}

    answer_lines(answer)


if __name__ == "__main__":
    main()
