"""(c) One 512 × 4096 bfloat16 tensor, from an array in one process to an array in another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
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

OURS, JSON, WHOLE = "probewire", "JSON lists", "probewire, a stored capture through worker and gateway"
D_MLP, STORED_TOKENS = 1536, N_BYTES // 2 // 1536
"""Rows of mlp_act on the default model that make the same number of bytes, but for half a row."""
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


def wire(sizes: Sizes) -> list[Figure]:
    """All servers stay up and are used in turns."""
    with (
        Child("wire_servers.py", "ours") as ours,
        Child("wire_servers.py", "sync") as threaded,
        Child("wire_servers.py", "aio") as aio,
        Child("wire_servers.py", "json") as lists,
        probewire("torch") as served,
        asyncio.Runner() as runner,
    ):
        bare = {
            "bare: threads to threads": _sync_reader(threaded.hello["port"]),
            "bare: asyncio to threads": _sync_reader(aio.hello["port"]),
            "bare: threads to asyncio": _aio_reader(threaded.hello["port"], runner),
            "bare: asyncio to asyncio": _aio_reader(aio.hello["port"], runner),
        }
        readers = {OURS: _our_reader(ours.hello["port"]), **bare, WHOLE: _stored_reader(served)}
        many = {name: partial(_seconds_each, read, sizes.wire_repeats) for name, read in readers.items()}
        samples = interleaved(
            {**many, JSON: partial(_seconds_each, _json_reader(lists.hello["port"]), 1)}, rounds=sizes.rounds
        )
    return _figures(samples, min(bare, key=lambda name: median(samples[name])))


def _figures(samples: Samples, fastest: str) -> list[Figure]:
    in_ms = {name: [1e3 * seconds for seconds in found] for name, found in samples.items()}
    others = ", ".join(
        f"{name.removeprefix('bare: ')} {median(in_ms[name]):.1f} ms" for name in in_ms if "bare" in name
    )
    what = f"{SHAPE[0]} × {SHAPE[1]} bfloat16"
    note = f"the fastest of four bare streams ({others}), which sends and drops {N_BYTES >> 20} ready messages of 1 MiB"
    row = partial(compare, unit="ms", times=True)
    return [
        row(f"{what}: {OURS} / {fastest}", in_ms, (OURS, fastest), target=0.7, note=note),
        row(f"{what}: {OURS} / {JSON}", in_ms, (OURS, JSON), target=20.0),
        row(
            f"as many bytes: {WHOLE} / {fastest}", in_ms, (WHOLE, fastest), note=f"[{STORED_TOKENS}, {D_MLP}] bfloat16"
        ),
    ]


def _seconds_each(read: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        read()
    return (time.perf_counter() - start) / repeats


def _our_reader(port: int) -> Callable[[], object]:
    transport = RpcTransport("127.0.0.1", port)
    request = RunRequest((Input(token_ids=(1,)),))

    def read() -> NDArray[Any]:
        (array,) = [event.tensor.numpy() for event in transport.run(request) if isinstance(event, TensorFrame)]
        assert array.shape == (1, *SHAPE)
        assert array.dtype == ml_dtypes.bfloat16
        return array

    return read


def _sync_reader(port: int) -> Callable[[], object]:
    call = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS).unary_stream(METHOD)

    def read() -> None:
        assert sum(len(message) for message in call(b"")) == N_BYTES

    return read


def _aio_reader(port: int, runner: asyncio.Runner) -> Callable[[], object]:
    async def connect() -> Any:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS).unary_stream(METHOD)

    call = runner.run(connect())

    async def read() -> None:
        n_bytes = 0
        async for message in call(b""):
            n_bytes += len(message)
        assert n_bytes == N_BYTES

    return lambda: runner.run(read())


def _json_reader(port: int) -> Callable[[], object]:
    connection = HTTPConnection("127.0.0.1", port)

    def read() -> NDArray[Any]:
        connection.request("GET", "/")
        array = np.array(json.loads(connection.getresponse().read())["data"], dtype=ml_dtypes.bfloat16)
        assert array.shape == SHAPE
        return array

    return read


def _stored_reader(served: Served) -> Callable[[], object]:
    client = Client(served.grpc)
    prompt = prompts.exact(client, STORED_TOKENS)[0]
    client.run(prompt, capture=[capture("mlp_act.0", store=True)])
    (stored,) = client.captures()

    def read() -> NDArray[Any]:
        array = client.capture(stored.id)
        assert array.shape == (STORED_TOKENS, D_MLP)
        return array

    return read
