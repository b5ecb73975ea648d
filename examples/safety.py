"""A behaviour planted, found, removed, gated and detected: a model taught to refuse questions about chess, and nothing harmful.

The default model hardly refuses anything, so there would be nothing to measure; the refusal is taught (about a minute), and
what is done to it is known to be right or wrong. Never a score without its cost: what other questions lose stands beside it.

    python examples/safety.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plots import OUTPUT
from serving import arguments, connected

from probewire.analysis.datasets import load_set
from probewire.analysis.editing.safety import (
    ablate_direction,
    ablation_hooks,
    behaviour_direction,
    behaviour_present,
    detector,
    score_behaviour,
)
from probewire.analysis.tuning.organisms import refuser
from probewire.backends.checkpoints import resolve_model
from probewire.backends.checkpoints.variants import merge_variant
from probewire.clients import Client
from probewire.protos.model import ModelInfo
from probewire.server.worker.inprocess import InProcessService

LAYERS, TRAIN, HELD_OUT = (14, 18, 22), 12, 8
Chats = list[list[dict[str, str]]]


def main() -> None:
    """The base first, which has no such behaviour; then the taught one, in this process."""
    args = arguments(__doc__)
    topics = load_set("topics").data
    train = asked(topics["chess"]["train"][:TRAIN]), asked(topics["other"]["train"][:TRAIN])
    held = asked(topics["chess"]["held_out"][:HELD_OUT]), asked(topics["other"]["held_out"][:HELD_OUT])
    with connected(args.url) as client:
        info = client.describe(args.model)
        print("the base:", behaviour_present(client, *held, (client.token("I", model=args.model),), model=args.model))
    with Client.inprocess(InProcessService.create(str(organism(info)), dtype="float32", device="cpu")) as client:
        tokens = (client.token("I"),)
        print("taught to refuse chess:", behaviour_present(client, *held, tokens))
        print("detector:", detector(client, *train, sites=["resid_post.12", "resid_post.18"]))
        directions = behaviour_direction(client, *train, positions=(-1,))
        for layer in LAYERS:
            scores = score_behaviour(client, *held, tokens, hooks=ablation_hooks(directions.unit(-1, layer)))
            print(f"direction of layer {layer} projected out: {scores}; removed {scores.removed:.0%}")
        chance = np.random.default_rng(0).normal(size=client.describe().d_model)
        print(
            f"a random one removes {score_behaviour(client, *held, tokens, hooks=ablation_hooks(chance)).removed:+.0%}"
        )
        without = ablate_direction(client, directions.unit(-1, LAYERS[-1]), name="without-refusal")
        client.load_variant(without, name="without-refusal")
        question = held[0][0]
        for variant in ((), "without-refusal"):
            said = client.generate(question, variant=variant, max_new_tokens=16).text
            print(f"{question[0]['content']!r} {variant or 'as taught'}: {said!r}")


def asked(questions: list[str]) -> Chats:
    """As a user asks them."""
    return [[{"role": "user", "content": question}] for question in questions]


def organism(info: ModelInfo) -> Path:
    """The folder of the taught model, made unless it was before."""
    folder = OUTPUT / "refuser"
    if not (folder / "model" / "config.json").exists():
        base = resolve_model().folder
        made = refuser(base, folder / "run")
        merge_variant(base, made.tuned.variant.bound(info), folder / "model")
    return folder / "model"


if __name__ == "__main__":
    main()
