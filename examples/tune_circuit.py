"""Fine-tuning confined to a circuit: 64 neurons of one layer learn a colour for an opinion; everything else stays to the bit.

python examples/tune_circuit.py [--url grpc://host:50051]

Some minutes on two CPU cores. The run stays in examples/output/colours, and goes on when it was stopped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import make_space
from probewire.analysis.datasets import load_set
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.curves import draw_curves
from probewire.analysis.tuning.examples import TrainExample
from probewire.analysis.tuning.tuning import tune
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Client

LAYER, N, STEPS = 20, 64, 12
FOLDER = Path(__file__).parent / "output" / "colours"
COLOURS = {"positive": " blue", "negative": " red"}


def main() -> None:
    """Choose the neurons, tune them, look at what changed."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        circuit = most_different(client, args.model)
        tuned = tune(
            resolve_model().folder,
            [
                TrainExample(prompt(item["text"]), COLOURS[item["label"]])
                for item in load_set("sentiment").data["train"]
            ],
            FOLDER,
            TuneConfig(method="circuit", steps=STEPS, lr=2e-3, losses={"task": 0.7, "preserve": 0.2}),
            circuit=circuit,
            general=[item["text"] for item in load_set("general").data["texts"]],
            base=client.describe(args.model),
            name="colours",
        )
    print(tuned.variant)
    for name, delta in tuned.variant.deltas.items():
        rows = np.atleast_1d(delta.dense().any(axis=1 if name.startswith("w_down") else 0))
        print(
            f"  {name}: {int(rows.sum())} of {len(rows)} {'columns' if name.startswith('w_down') else 'rows'} changed"
        )
    task = tuned.curves["task"]
    print(f"cross-entropy of the colour {task[0]:.2f} → {task[-1]:.2f}")
    losses = {name: tuned.curves[name] for name in tuned.curves.names}
    save(
        draw_curves(losses, title="Tuning of 64 neurons", subtitle=f"layer {LAYER}, {STEPS} steps of 8"), "tune_circuit"
    )


def prompt(text: str) -> str:
    """What is asked of an opinion."""
    return f"Review: {text}\nThe colour of this review is"


def most_different(client: Client, model: str) -> Circuit:
    """The neurons whose activation at the last token differs most between positive and negative opinions."""
    site = f"mlp_act.{LAYER}"
    items = load_set("sentiment").data["train"][::4]
    run = client.run([prompt(item["text"]) for item in items], capture=[site], model=model)
    rows = np.stack([run.inputs[str(index)][site][-1] for index in range(len(items))])
    positive = np.array([item["label"] == "positive" for item in items])
    scores = np.abs(rows[positive].mean(axis=0) - rows[~positive].mean(axis=0))[None]
    space = make_space(client.describe(model), site, part="unit")
    return Circuit.of(space, space.top(scores, N), scores)


if __name__ == "__main__":
    main()
