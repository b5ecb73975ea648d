"""How few neurons keep a behaviour: a circuit found, judged against random ones, and saved.

Neurons are ranked by RelP on a few prompts; the circuit is as many of the best as keep 80 % of the answer while every
other neuron has the value it has on the corrupt prompt. Then: what the rest can do without the circuit, and circuits of the
same size drawn at random. A result is only as good as its ablation, so that is always named.

    python examples/circuit.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.attribution import GRAPH_RULES, attribution_patching
from probewire.analysis.circuits import ablated, curve, neuron_space, prune_ranking, random_control
from probewire.analysis.plots import faithfulness_curves
from probewire.analysis.tasks import accuracy, fit, ioi

OUTPUT = Path(__file__).parent / "output"
PROMPTS = 2
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02)


def main() -> None:
    """The task, two rankings, a circuit from the best, and its controls."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        info = client.describe(args.model)
        task = fit(ioi().where(template="0"), client, PROMPTS, model=args.model)
        print(task, accuracy(client, task), sep="\n")
        space = neuron_space(info, task.lengths[0])
        prompts = (task.clean, task.corrupt)
        model = ablated(client, *prompts, task.metrics, space, model=args.model, progress=False)
        print(f"{space.size:,} neurons; the answer with all of them {model.full:+.2f}, with none {model.empty:+.2f}")
        curves: dict[str, np.ndarray] = {}
        scores: dict[str, np.ndarray] = {}
        for name, rules in {"AtP": (), "RelP": GRAPH_RULES}.items():
            scores[name] = attribution_patching(
                client, *prompts, "mlp_act", task.metrics, units=True, rules=rules, direction="noise", model=args.model
            ).importance.values
        for name, found in scores.items():
            curves[name] = curve(model, found, fractions=FRACTIONS, absolute=True).faithfulness
            print(
                f"{name:<8}"
                + "".join(f"  {100 * f:g} %: {v:5.2f}" for f, v in zip(FRACTIONS, curves[name], strict=True))
            )
        pruned = prune_ranking(model, scores["RelP"], absolute=True, tolerance=0.2, method="RelP, all rules")
        circuit = pruned.circuit.with_origin(
            model=info.id,
            model_hash=info.model_hash,
            task=task.name,
            metric="logit difference",
            notes={"dtype": info.dtype, "backend": info.backend},
        )
        origin = circuit.origin
        print(f"\n{circuit}; without it {origin.completeness:.2f} remains")
        control = random_control(model, circuit, n=5)
        print(f"random circuits of that size: {control.random.max():.2f} at best (p = {control.p_value:.2f})")
    print(f"saved: {circuit.save(OUTPUT / 'circuit.json')}")
    faithfulness_curves(
        FRACTIONS,
        curves,
        what="How few neurons keep the answer",
        how=f"{info.id}, {len(task)} prompts; all other neurons patched from the corrupt prompt",
        x_label="share of neurons kept",
        path=OUTPUT / "circuit.png",
    )
    print(f"plot: {OUTPUT / 'circuit.png'}")


if __name__ == "__main__":
    main()
