"""What one model hands to another: a steering vector, a condition and an edited fact, moved to a twin by a map of the streams.

The twin is the same function with its stream rotated, so the truth is known: a map fitted on text must find the rotation,
and everything moved by it must do there what it did here. A map fitted on rows paired at random is the control.

    python examples/transfer.py [--url grpc://host:50051]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from serving import arguments, connected

from probewire.analysis.datasets import load_set
from probewire.analysis.editing import (
    Answers,
    capital_facts,
    edit_facts,
    fit_map,
    rotated_twin,
    transfer_condition,
    transfer_variant,
    transfer_vector,
    variant_hooks,
)
from probewire.analysis.sae import documentation
from probewire.analysis.steering import fit_condition, steering_vector
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

LAYER, TEXTS = 4, 24
SITE = f"resid_post.{LAYER}"


def main() -> None:
    """Make the twin, fit the maps, move three things."""
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as temporary, connected(args.url) as source:
        folder = Path(temporary, "twin")
        truth = rotated_twin(resolve_model().folder, folder)
        twin = InProcessService.create(str(folder), dtype="float32", device="cpu")
        with Client.inprocess(twin) as target:
            show((source, args.model), target, truth)


def show(source: tuple[Client, str], target: Client, truth: Any) -> None:
    """Each of the three, by the map and by the control."""
    texts = [document.text[:400] for document, _ in zip(documentation(), range(TEXTS), strict=False)]
    maps = {
        "rotation": fit_map(source, target, texts, (LAYER, LAYER), kind="procrustes"),
        "shuffled pairs": fit_map(source, target, texts, (LAYER, LAYER), kind="procrustes", shuffled=0),
    }
    for name, by in maps.items():
        print(f"{name}: {by}; ‖T − Q‖/‖Q‖ {np.linalg.norm(by.matrix - truth) / np.linalg.norm(truth):.1e}")

    client, model = source
    pairs = load_set("formality").data["pairs"]
    formal, informal = ([one[kind] for one in pairs["train"]] for kind in ("formal", "informal"))
    vector = steering_vector(client, formal, informal, SITE, model=model).vector
    for name, by in maps.items():
        moved, wanted = transfer_vector(vector, by).directions[f"resid_post.{LAYER}"], truth @ vector.directions[SITE]
        print(
            f"vector by {name}: cosine with Q·v {moved @ wanted / np.linalg.norm(moved) / np.linalg.norm(wanted):+.4f}"
        )

    condition = fit_condition(client, formal, informal, sites=SITE, n_shuffles=2, model=model)
    held = [one[kind] for one in pairs["held_out"] for kind in ("formal", "informal")]
    for name, by in maps.items():
        print(f"condition by {name}: {transfer_condition(source, condition, target, by, held)}")

    [fact] = [one for one in capital_facts("all") if one.subject == "France"]
    edited = edit_facts(client, fact, layers=LAYER, value={"steps": 10}, model=model)
    data = load_set("facts_capitals").data
    prompts = [data["forms"][0].replace("{}", country) for country in data["capitals"]] + texts[:6]
    print(f"{fact.asked!r} →{fact.target_new}: p {said(client, fact, edited.hooks, model):.3f} at the source")
    for name, by in maps.items():
        there = transfer_variant(source, edited.variant, target, by, prompts, rank=1)
        print(
            f"fact by {name}: p {said(target, fact, variant_hooks(there.variant)):.3f} at the twin; fit {there.fit:.3f}"
        )
    print(f"without: p {said(target, fact, []):.3f}")


def said(client: Client, fact: Any, hooks: Any, model: str = "") -> float:
    """Probability of the new target."""
    return float(np.exp(Answers(client, hooks=hooks, model=model).log_prob(fact.asked, fact.target_new)))


if __name__ == "__main__":
    main()
