"""(b) Against interp-engine's server: generations, ours captured and theirs not, and prompt captures."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import prompts
from concurrency import together
from numpy.typing import NDArray
from peer_server import PEER, Peer, peer, peer_python
from ratios import Figure, Samples, compare, interleaved
from servers import model_folder, probewire
from sizes import Sizes
from streams import Asked, eight_streams, one_stream

from probewire.clients import Client

__all__ = ["against_peer"]

CAPTURED: Asked = {"capture": ["resid_post.*"]}
OURS, OURS_PLAIN, THEIRS = "ours, captured", "ours, not captured", "theirs, not captured"

Read = Callable[[list[int]], dict[str, NDArray[Any]]]


def against_peer(sizes: Sizes) -> list[Figure]:
    """Both servers stay up, in bfloat16 with their default threads, and are used in turns."""
    python = peer_python(sizes.peer_python)
    with probewire("torch") as served, Client(served.grpc) as client, peer(python, model_folder()) as theirs:
        return [*_generations(client, theirs, sizes), *_captures(client, theirs, sizes)]


def _generations(client: Client, theirs: Peer, sizes: Sizes) -> list[Figure]:
    eight, n_new = prompts.short(client), sizes.n_new

    def their_eight() -> float:
        seconds, counts = together(partial(theirs.generate, n_new=n_new), eight)
        return sum(counts) / seconds

    at_once = interleaved(
        {
            OURS: lambda: eight_streams(client, eight, n_new, CAPTURED),
            OURS_PLAIN: lambda: eight_streams(client, eight, n_new, {}),
            THEIRS: their_eight,
        },
        rounds=sizes.rounds,
    )
    alone = interleaved(
        {
            OURS: lambda: _rate(lambda: one_stream(client, eight[0], n_new=n_new, asked=CAPTURED)),
            OURS_PLAIN: lambda: _rate(lambda: one_stream(client, eight[0], n_new=n_new, asked={})),
            THEIRS: lambda: _rate(lambda: theirs.generate(eight[0], n_new)),
        },
        rounds=sizes.rounds,
    )
    return [
        _row("eight generations", at_once, OURS, 4.0, "the goal is 5 ×; they run eager generations one by one"),
        _row("eight generations", at_once, OURS_PLAIN, None),
        _row("one generation", alone, OURS_PLAIN, 1.0),
        _row("one generation", alone, OURS, 1.0),
    ]


def _row(what: str, samples: Samples, ours: str, target: float | None, note: str = "") -> Figure:
    return compare(f"{what}: {ours} / {THEIRS}", samples, (ours, THEIRS), unit="tok/s", target=target, note=note)


def _captures(client: Client, theirs: Peer, sizes: Sizes) -> list[Figure]:
    layers = range(client.describe().n_layers)
    points = [f"resid_post.{layer}" for layer in layers]
    asked = prompts.exact(client, sizes.n_prompt)

    def ours(prompt: list[int]) -> dict[str, NDArray[Any]]:
        run = client.run(prompt, capture=["resid_post.*"])
        return {point: run[point] for point in points}

    readers: dict[str, Read] = {"ours": ours, "theirs": partial(theirs.capture, points=points)}
    rows = {name: _rows_of(read(asked[0])) for name, read in readers.items()}
    if rows["ours"] != rows["theirs"]:
        raise RuntimeError(f"the two did not capture the same rows: {rows}")
    alone = interleaved(
        {name: partial(_latency, read, asked, sizes) for name, read in readers.items()}, rounds=sizes.rounds
    )
    at_once = interleaved(
        {name: partial(_at_once, read, asked, sizes) for name, read in readers.items()}, rounds=sizes.rounds
    )
    what = f"{sizes.n_prompt} tokens × {len(points)} layers of prompt capture"
    pair = ("ours", "theirs")
    return [
        compare(f"{what}, one client: latency, theirs / ours", alone, pair, unit="s", target=1.0, times=True),
        compare(
            f"{what}, eight clients: ours / theirs", at_once, pair, unit="tok/s", target=1.2, note=f"against {PEER}"
        ),
    ]


def _rows_of(arrays: dict[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def _rate(generate: Callable[[], int]) -> float:
    """Tokens a second of one generation."""
    start = time.perf_counter()
    n_tokens = generate()
    return n_tokens / (time.perf_counter() - start)


def _latency(read: Read, asked: list[list[int]], sizes: Sizes) -> float:
    """Seconds a capture, one after the other."""
    start = time.perf_counter()
    for i in range(sizes.repeats):
        read(asked[i % len(asked)])
    return (time.perf_counter() - start) / sizes.repeats


def _at_once(read: Read, asked: list[list[int]], sizes: Sizes) -> float:
    """Prompt tokens a second, eight callers that each ask again and again."""

    def caller(prompt: list[int]) -> None:
        for _ in range(sizes.repeats):
            read(prompt)

    seconds, _ = together(caller, asked)
    return sizes.n_prompt * sizes.repeats * len(asked) / seconds
