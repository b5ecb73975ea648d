"""Two corpora in one SAE: latents of a text to forget and of one to retain, kept apart while it trains, beside a plain one.

Small: a few thousand rows of each and a hundred steps, so figures say how it is done and not whether it helps; the
comparison with seeds, equal L0 and forgetting is `python benchmarks/surgery_sae.py`.

    python examples/dual_sae.py [--url grpc://host:50051]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from plots import OUTPUT, save
from serving import arguments, connected

from probewire.analysis.plots.style import BLUE, ORANGE, new, title
from probewire.analysis.sae.data import corpus
from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.data.store import ActivationStore
from probewire.analysis.sae.dual.dual_batches import DualBatches, split_size
from probewire.analysis.sae.dual.separation import Separation, rate_ratios, separation_auroc
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.scoring.scores import ExplainedVariance
from probewire.analysis.sae.training.training import train
from probewire.clients import Client

SITE, ROWS, HELD_OUT, D_SAE, K, STEPS, BATCH = "resid_post.15", 8000, 2000, 576, 24, 120, 256
FOLDER = OUTPUT / "dual_sae"


def main() -> None:
    """Rows of two halves of the documentation, two SAEs, what tells the corpora apart in each."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        rows = {side: collected(client, side, texts, args.model) for side, texts in halves().items()}
    ratios: dict[str, Any] = {}
    for name in ("plain", "separated"):
        sae, told = load(trained(name, rows)), list[str]()
        fires: list[Any] = []
        for side, every in rows.items():
            held, variance = every[-HELD_OUT:], ExplainedVariance()
            latents = sae.encode(held)
            variance.add(held, sae.decode(latents))
            fires.append(latents > 0)
            told.append(f"explained variance of {side} {variance.value:.3f}")
        both, labels = np.concatenate(fires), np.repeat([True, False], [len(side) for side in fires])
        ratios[name] = rate_ratios(both[:, both.any(axis=0)], labels)
        print(
            f"{name}: {', '.join(told)}, L0 {both.sum() / len(both):.1f}, latents tell the corpora apart {separation_auroc(both, labels):.3f}"
        )
    figure, axes = new(7.0, 3.6)
    for name, colour in (("plain", BLUE), ("separated", ORANGE)):
        axes.hist(ratios[name], np.linspace(-6, 6, 49), color=colour, alpha=0.6, label=name)
    axes.set(xlabel="log (rate on rows to forget / rate on rows to retain)", ylabel="latents")
    axes.legend()
    title(axes, "How far latents are of one corpus alone", f"{D_SAE} latents of {SITE}, {STEPS} steps; held-out rows")
    save(figure, "dual_sae")


def halves() -> dict[str, list[str]]:
    """The prose of SymPy (to forget) and of NetworkX (to retain)."""
    documentation()
    lines = (
        next((Path.home() / ".cache" / "probewire" / "documentation").glob("prose-*.jsonl")).read_text().splitlines()
    )
    texts: dict[str, list[str]] = {"forget": [], "retain": []}
    for line in map(json.loads, lines):
        texts["retain" if line["source"].startswith("networkx") else "forget"].append(line["text"])
    return texts


def collected(client: Client, side: str, texts: list[str], model: str) -> Any:
    """[row, d_model] of one corpus; kept, so that a second run reads them."""
    collect(client, corpus.texts(texts, side), SITE, FOLDER / side, pack=True, n_tokens=ROWS, model=model)
    return ActivationStore.open(FOLDER / side).array()


def trained(name: str, rows: dict[str, Any]) -> Path:
    """An SAE of half and half batches."""
    n_forget, n_retain = split_size(BATCH)
    forget, retain = (every[:-HELD_OUT] for every in rows.values())
    batches = DualBatches(
        ArrayBatches(forget, n_forget, 0, manifest={"site": SITE}),
        ArrayBatches(retain, n_retain, 1000, manifest={"site": SITE}),
    )
    config = TrainConfig(
        architecture="batchtopk",
        d_sae=D_SAE,
        k=K,
        steps=STEPS,
        batch_size=BATCH,
        lr=1e-3,
        lr_decay_steps=STEPS // 5,
        normalisation="expected_average_only_in",
        normalisation_batches=10,
        checkpoints=1,
        options={"topk_threshold_lr": 0.05},
    )
    loss = Separation(batches.labels, 0.02) if name == "separated" else None
    return train(batches, config, FOLDER / name, added_loss=loss).folder


if __name__ == "__main__":
    main()
