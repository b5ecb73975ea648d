"""What variants cost: tokens a second of eight streams with them, as a share of the same streams without, in one run.

python benchmarks/variants.py MODEL_FOLDER [--backend torch] [--dtype float32] [--rounds 3] [--tokens 24] [--cpu]

--cpu counts the process's CPU seconds (set OMP_NUM_THREADS=1), for machines that others use too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Delta, Variant
from probewire.protos.model import Input
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel

N_STREAMS = 8
PROMPT = "The harbour was quiet before the boats came in, and"


def variant(client: Client, rng: np.random.Generator, rank: int, names: tuple[str, ...] = ()) -> Variant:
    """Random deltas at all of a model's layer weights, or at the named ones."""
    return Variant(
        {
            one.name: Delta(rng.normal(size=(one.d_in, rank)) * 0.01, rng.normal(size=(rank, one.d_out)) * 0.01)
            for one in client.describe().weights
            if (one.name in names if names else one.name not in ("w_embed", "w_unembed"))
        }
    )


def seconds(client: Client, uses: list[Any], n_tokens: int, clock: Callable[[], float]) -> float:
    """Of a generation of all streams, each with what it runs with."""
    inputs = {f"s{i}": Input(text=PROMPT, variants=use) for i, use in enumerate(uses)}
    start_s = clock()
    client.generate(inputs, max_new_tokens=n_tokens, ignore_eos=True)
    return clock() - start_s


def main() -> None:
    """Print a ratio a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.cpu else time.perf_counter
    folder = Path(given.folder)
    limits = Limits(n_slots=N_STREAMS, context_tokens=512, cache_tokens=4096)
    config = WorkerConfig(str(folder), "m", backend=given.backend, dtype=given.dtype, engine=limits)
    client = Client.inprocess(InProcessService(LocalModel(config, folder)))
    rng = np.random.default_rng(0)
    client.load_variant(variant(client, rng, 1, (f"w_down.{client.describe().n_layers // 2}",)), name="one")
    for i in range(N_STREAMS):
        client.load_variant(variant(client, rng, 8), name=f"v{i}")
    cases: dict[str, list[Any]] = {
        "nothing named": [()] * N_STREAMS,
        "rank 1 at one weight, all streams": ["one"] * N_STREAMS,
        "rank 8 everywhere, one variant": ["v0"] * N_STREAMS,
        "rank 8 everywhere, eight variants": [f"v{i}" for i in range(N_STREAMS)],
        "rank 8 everywhere, one stream of eight": ["v0", *[()] * (N_STREAMS - 1)],
    }
    for uses in cases.values():
        seconds(client, uses, 4, clock)
    ratios: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(given.rounds):
        for name, uses in cases.items():
            before = seconds(client, [()] * N_STREAMS, given.tokens, clock)
            ratios[name].append(before / seconds(client, uses, given.tokens, clock))
    print(
        f"{given.backend} {given.dtype}, {N_STREAMS} streams of {given.tokens} tokens, {given.rounds} rounds: speed ÷ base"
    )
    for name, found in ratios.items():
        print(f"  {name:<42} {median(found):.2f}   ({', '.join(f'{one:.2f}' for one in found)})")


if __name__ == "__main__":
    main()
