"""A model on a GPU, in process: generations read and steered, captures, gradients and sweeps, against plain ones.

    python benchmarks/cuda.py [--device cuda] [--rounds N] [--quick]

The model is of llama's architecture with random weights, about 1.2 billion (`--quick`: a tiny one), as the machines
with GPUs that we are lent reach no hub. Prints markdown; figures are reported, not asserted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from concurrency import together
from ratios import Figure, compare, interleaved, report
from streams import Asked, one_stream, steering

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from probewire.clients import Client, LogProb, ablate, capture  # noqa: E402
from probewire.server.worker.inprocess import InProcessService  # noqa: E402
from tests.tiny_models import tiny_checkpoint  # noqa: E402

LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
SMALL = {"num_hidden_layers": 14}
PLAIN, EVERY, STEERED = "not captured", "resid_post.* captured", "one site steered"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few tokens: to see that it runs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny_checkpoint("llama", Path(scratch), **(SMALL if args.quick else LARGE))
        service = InProcessService.create(folder, device=args.device, dtype="bfloat16", threads=None)
        with Client.inprocess(service) as client:
            info = client.describe()
            print(f"{info.device}, {info.n_layers} layers of {info.d_model}, {info.dtype}, attention {info.attention}")
            print(report("(s) A model in process, random weights", [*_streams(client, args), *_forwards(client, args)]))
    return 0


def _streams(client: Client, args: argparse.Namespace) -> list[Figure]:
    n_new = 8 if args.quick else 256
    draw = np.random.default_rng(0)
    eight = [draw.integers(0, 255, 64).tolist() for _ in range(8)]
    variants: dict[str, Asked] = {
        PLAIN: {},
        EVERY: {"capture": ["resid_post.*"]},
        STEERED: {"hooks": [steering(client)]},
    }

    def rate(asked: Asked) -> float:
        seconds, counts = together(partial(one_stream, client, n_new=n_new, asked=asked), eight)
        return sum(counts) / seconds

    timed = {name: partial(rate, asked) for name, asked in variants.items()}
    samples = interleaved(timed, rounds=args.rounds, any_order=True)
    return [
        compare(f"eight streams: {name} / {PLAIN}", samples, (name, PLAIN), unit="tok/s", target=target)
        for name, target in ((EVERY, 0.85), (STEERED, 0.95))
    ]


def _forwards(client: Client, args: argparse.Namespace) -> list[Figure]:
    n = 32 if args.quick else 1024
    prompt = np.random.default_rng(1).integers(0, 255, n).tolist()
    layers = client.describe().n_layers
    plans = [[ablate(f"attn_out.{layer}")] for layer in range(layers)]
    timed: dict[str, Callable[[], float]] = {
        "run": partial(_seconds, client.run, prompt, hooks=[capture("logits", positions=[-1])]),
        "run, resid_post.*": partial(_seconds, client.run, prompt, capture=["resid_post.*"]),
        "gradients": partial(_seconds, client.gradients, prompt, LogProb(5), at=["resid_post.*"]),
        "sweep": partial(_seconds, client.sweep, prompt, LogProb(5), plans, progress=False),
        "a run a plan": lambda: sum(_seconds(client.run, prompt, hooks=plan, capture=["logits"]) for plan in plans),
    }
    samples = interleaved(timed, rounds=args.rounds, any_order=True)
    return [
        compare(f"{n} tokens: {what} / {beside}", samples, (what, beside), unit="s", times=True)
        for what, beside in (("run, resid_post.*", "run"), ("gradients", "run"), ("sweep", "a run a plan"))
    ]


def _seconds(call: Callable[..., Any], *args: Any, **options: Any) -> float:
    start_s = time.perf_counter()
    call(*args, **options)
    return time.perf_counter() - start_s


if __name__ == "__main__":
    sys.exit(main())
