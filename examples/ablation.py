"""Ablation: which attention heads, and which neuron, the name at the end of a sentence hangs on.

Every head is taken out in turn, once by zeros and once by its mean over other prompts. The two agree about late heads
and not about early ones, so a result means little without its ablation type. Then the busiest neurons of the last
layers, and for the one that is missed most the causal battery, against random neurons that are as active.

    python examples/ablation.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.ablation import MeanAblation, ZeroAblation, ablation_sweep, causal_battery, measure
from probewire.analysis.plots import head_grid
from probewire.analysis.tasks import FittedTask, accuracy, fit, ioi
from probewire.clients import Client, NamedArray

OUTPUT = Path(__file__).parent / "output"
PROMPTS, REFERENCE_PROMPTS = 4, 16
LAST_LAYERS, NEURONS_A_LAYER = 3, 32


def main() -> None:
    """The task, the heads under two kinds of ablation, then one neuron in detail."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        # A task is plain text until it meets a tokenizer: names that are not one token, or do not pair, are left out.
        task = fit(ioi(), client, PROMPTS, model=args.model)
        print(task, accuracy(client, task), sep="\n")
        print(f"for example {task.examples[0].example.clean!r} → {task.examples[0].example.correct[0]!r}")

        # Mean values come from other sentences of the same kind.
        others = fit(ioi(seed=1), client, REFERENCE_PROMPTS, model=args.model)
        kinds = [ZeroAblation(), MeanAblation(measure(client, others.clean, "z.*", model=args.model))]
        change = ablation_sweep(client, task, "heads", kinds).mean("input")
        for kind in change.axes["ablation"]:
            print(f"{kind} ablation, change of the logit difference: {strongest(change.sel(ablation=kind))}")

        zero, mean = (change.sel(ablation=kind) for kind in change.axes["ablation"])
        apart = NamedArray(-np.abs(zero.values - mean.values), zero.axes)
        print(f"where the two disagree most (−|difference|): {strongest(apart)}")

        one_neuron(client, task)
        model = client.describe(args.model).id
    OUTPUT.mkdir(exist_ok=True)
    head_grid(
        change.sel(ablation="mean").values,
        what="The heads that name the indirect object",
        how=f"{model}, {len(task)} prompts; mean ablation of one head",
        label="change of the logit difference",
        path=OUTPUT / "ablation.png",
    )
    print(f"\nplot: {OUTPUT / 'ablation.png'}")


def strongest(change: NamedArray, n: int = 5) -> str:
    """The heads whose loss costs most."""
    layers, heads = change.axes["layer"], change.axes["head"]
    cells = [divmod(i, len(heads)) for i in np.argsort(change.values, axis=None)[:n].tolist()]
    return ", ".join(f"{layers[i]}.{heads[j]} {change.values[i, j]:+.2f}" for i, j in cells)


def one_neuron(client: Client, task: FittedTask) -> None:
    """Of the busiest neurons of the last layers, the one that is missed most, put through the battery."""
    n_layers = client.describe(task.model).n_layers
    best = (0.0, 0, 0)
    for layer in range(n_layers - LAST_LAYERS, n_layers):
        run = client.run(task.clean, capture=f"mlp_act.{layer}", model=task.model)
        activity = np.mean([np.abs(item[f"mlp_act.{layer}"][-1]) for item in run.inputs.values()], axis=0)
        busiest = np.sort(np.argsort(-activity)[:NEURONS_A_LAYER]).tolist()
        change = ablation_sweep(
            client, task, "neurons", ZeroAblation(), layers=[layer], indices=busiest, positions=-1, progress=False
        ).mean("input")
        i = int(change.values.argmin())
        best = min(best, (float(change.values.min()), layer, busiest[i]))
    found = causal_battery(client, task, best[1], best[2], positions=-1)
    print(f"the neuron missed most: {best[2]} of layer {best[1]}")
    print(found)
    print("passes " + (", ".join(name for name, passed in found.passed.items() if passed) or "nothing"))


if __name__ == "__main__":
    main()
