"""(c) One 512 × 4096 bfloat16 tensor, from an array in one process to an array in another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from statistics import median
from typing import Any

import grpc
import grpc.aio
import ml_dtypes
import numpy as np
import prompts
from child import Child
from numpy.typing import NDArray
from ratios import Figure, Samples, compare, interleaved
from servers import Served, probewire
from sizes import Sizes
from wire_servers import METHOD, N_BYTES, SHAPE

from probewire.clients import Client, Input, capture
from probewire.clients.rpc import RpcTransport
from probewire.protos.model import RunRequest, TensorFrame

__all__ = ["wire"]

Read = Callable[[], object]
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]
OURS, JSON, WHOLE = "probewire", "JSON lists", "probewire, a stored capture through worker and gateway"
D_MLP, STORED_TOKENS = 1536, N_BYTES // 2 // 1536
"""Rows of mlp_act on the default model that make the same number of bytes, but for half a row."""
SERVERS, ENDS = ("sync", "aio"), ("an array", "dropped")
"""The bare stream's servers, and what its reader does with the bytes."""


def wire(sizes: Sizes) -> list[Figure]:
    """All servers stay up and are used in turns."""
    with ExitStack() as stack, asyncio.Runner() as runner:
        ports = {
            kind: int(stack.enter_context(Child("wire_servers.py", kind)).hello["port"])
            for kind in ("ours", *SERVERS, "json")
        }
        readers: dict[str, Read] = {OURS: _our_reader(ports["ours"])}
        for end in ENDS:
            for kind in SERVERS:
                readers[_bare(kind, "sync", end)] = _sync_reader(ports[kind], keep=end == ENDS[0])
                readers[_bare(kind, "aio", end)] = _aio_reader(ports[kind], runner, keep=end == ENDS[0])
        readers[WHOLE] = _stored_reader(stack.enter_context(probewire("torch")))
        timed = {name: partial(_seconds_each, read, sizes.wire_repeats) for name, read in readers.items()}
        timed[JSON] = partial(_seconds_each, _json_reader(ports["json"]), 1)
        return _figures(interleaved(timed, rounds=sizes.rounds))


def _bare(server: str, client: str, end: str) -> str:
    return f"bare stream ({server} server, {client} client), {end}"


def _figures(samples: Samples) -> list[Figure]:
    in_ms = {name: [1e3 * seconds for seconds in found] for name, found in samples.items()}
    fastest = [min((name for name in samples if name.endswith(end)), key=lambda n: median(samples[n])) for end in ENDS]
    what = f"{SHAPE[0]} × {SHAPE[1]} bfloat16"
    row = partial(compare, unit="ms", times=True)
    return [
        row(f"{what}: {OURS} / {fastest[0]}", in_ms, (OURS, fastest[0]), target=0.7, note=_all_bare(in_ms, ENDS[0])),
        row(f"{what}: {OURS} / {fastest[1]}", in_ms, (OURS, fastest[1]), note=_all_bare(in_ms, ENDS[1])),
        row(f"{what}: {OURS} / {JSON}", in_ms, (OURS, JSON), target=20.0),
        row(f"{WHOLE} / {fastest[0]}", in_ms, (WHOLE, fastest[0]), note=f"[{STORED_TOKENS}, {D_MLP}], as many bytes"),
    ]


def _all_bare(in_ms: Samples, end: str) -> str:
    did = "joined into an array as ours are" if end == ENDS[0] else "dropped as they come, so that no array is made"
    found = ", ".join(
        f"{name.partition(')')[0]}) {median(ms):.1f} ms" for name, ms in in_ms.items() if name.endswith(end)
    )
    return f"the fastest of {found}; {N_BYTES >> 20} ready-made messages of 1 MiB, {did}"


def _seconds_each(read: Read, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        read()
    return (time.perf_counter() - start) / repeats


def _our_reader(port: int) -> Read:
    transport = RpcTransport("127.0.0.1", port)
    request = RunRequest((Input(token_ids=(1,)),))

    def read() -> NDArray[Any]:
        (array,) = [event.tensor.numpy() for event in transport.run(request) if isinstance(event, TensorFrame)]
        assert array.shape == (1, *SHAPE)
        assert array.dtype == ml_dtypes.bfloat16
        return array

    return read


def _sync_reader(port: int, *, keep: bool) -> Read:
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    start: Callable[[bytes], Iterable[bytes]] = channel.unary_stream(METHOD)

    def read() -> object:
        if keep:
            return _joined(list(start(b"")))
        n_bytes = sum(len(message) for message in start(b""))
        assert n_bytes == N_BYTES
        return n_bytes

    return read


def _aio_reader(port: int, runner: asyncio.Runner, *, keep: bool) -> Read:
    async def connect() -> Callable[[bytes], AsyncIterable[bytes]]:
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        return channel.unary_stream(METHOD)

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


def _json_reader(port: int) -> Read:
    connection = HTTPConnection("127.0.0.1", port)

    def read() -> NDArray[Any]:
        connection.request("GET", "/")
        array = np.array(json.loads(connection.getresponse().read())["data"], dtype=ml_dtypes.bfloat16)
        assert array.shape == SHAPE
        return array

    return read


def _stored_reader(served: Served) -> Read:
    client = Client(served.grpc)
    prompt = prompts.exact(client, STORED_TOKENS)[0]
    client.run(prompt, capture=[capture("mlp_act.0", store=True)])
    (stored,) = client.captures()

    def read() -> NDArray[Any]:
        array = client.capture(stored.id)
        assert array.shape == (STORED_TOKENS, D_MLP)
        return array

    return read
