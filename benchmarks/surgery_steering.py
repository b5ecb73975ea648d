"""Steering at equal cost, pronoun bias, and a planted refusal, on the default model: what is printed is in RESULTS.md.

    python benchmarks/surgery_steering.py formality | pronouns | refusal
"""

from __future__ import annotations

import argparse
import time

from probewire.analysis.datasets import load_set
from probewire.analysis.steering import choice, compare_positions, steering_vector
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

STRATEGIES = ("last", "last_3", "first", "all", "dense_3", "generated")


def formality(client: Client, *, n: int = 12, layer: int = 14) -> None:
    """Vector from the training pairs, measured on held-out choices."""
    data = load_set("formality").data
    pairs, site = data["pairs"]["train"], f"resid_post.{layer}"
    vector = steering_vector(client, [p["formal"] for p in pairs], [p["informal"] for p in pairs], site)
    choices = [choice(client, one["prompt"], one["formal"], one["informal"]) for one in data["choices"]["held_out"][:n]]
    prompts, metrics = [one.prompt for one in choices], [one.metric for one in choices]
    found = compare_positions(client, vector, site, prompts, metrics, strategies=STRATEGIES, n_random=24, n_new=24)
    print(found, flush=True)
    for name in found.strategies:
        kl, shift = found.curve(name)
        points = ", ".join(f"{y:+.2f} at {x:.2f}" for x, y in zip(kl[1:], shift[1:], strict=True))
        print(f"{name}: shift at KL: {points}; area up to .2: {found.area(name, 0.2):+.2f}")
    at_half = found.strengths.index(0.5)
    ordered = found.area("last_3", 0.2) >= found.area("last", 0.2) >= found.area("first", 0.2)
    beaten = {name: found.beats(name) for name in found.strategies if name != "first"}
    print(f"area(last_3) ≥ area(last) ≥ area(first) up to KL .2: {'pass' if ordered else 'MISS'}")
    print(f"every strategy but first beats 24 of 24 at .5: {'pass' if min(beaten.values()) == 24 else 'MISS'} {beaten}")
    print(f"KL at .5: {found.kl[:, at_half].mean(axis=1).round(3).tolist()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["formality", "pronouns", "refusal"])
    asked = parser.parse_args()
    start_s = time.monotonic()
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        {"formality": formality}[asked.what](client)
    print(f"{time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
