"""Fine-tuning while a neuron is pushed, only where it is active: does the model learn less, or unlearn, what the push did for it?

The texts say that the capital of France is Paris. With the push on, training need not store it (or must store more); then
the push goes. Before anything is trained two backward passes predict the sign. Siblings are six other countries.

    python examples/tune_steered.py [--url grpc://host:50051]
"""

from __future__ import annotations

from serving import arguments

from probewire.analysis.tuning.base import load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.steered.arms import Neuron, arm_pushes
from probewire.analysis.tuning.steered.association import known_association
from probewire.analysis.tuning.steered.steered_run import figures_of, measured, predicted, steered_run
from probewire.analysis.tuning.tuning import prepared
from probewire.backends.checkpoints import resolve_model

NEURON = Neuron(layer=8, unit=1199, polarity=-1, strong=3.6)
"""One that `choose_neurons` names for this association; it fires where it is negative."""
EPOCHS = (0, 4, 8)


def main() -> None:
    """No push, a push up, a push down; trained in this process, as tuning is (--url is not used)."""
    arguments(__doc__)
    base, association = load_base(resolve_model().folder), known_association()
    before = measured(base, association, "report")
    print({role: round(float(before[f"A:{role}"].mean()), 2) for role in association.report})
    for amount in (0.0, 10.0, -10.0):
        pushes = arm_pushes("B" if amount else "A", amount, NEURON)
        told = f" where −mlp_act.{NEURON.layer} #{NEURON.unit} > {NEURON.threshold:g}" if pushes else ""
        print(f"push {amount:+g} strong values{told}")
        config = TuneConfig(
            method="steered" if pushes else "lora",
            steps=EPOCHS[-1],
            batch_size=8,
            lr=1e-4,
            losses={"task": 1.0},
            normalise_losses=False,
        )
        objective = prepared(base, config, pushes=pushes)
        said = predicted(objective, association)
        if objective.pushes is not None:
            objective.pushes.remove()
        assert objective.adapter is not None  # LoRA
        objective.adapter.model.unload()
        print(f"  predicted: the association goes {'up' if said['g0'] > 0 else 'down'} (g₀ {said['g0']:+.2f})")
        for epoch, _ in steered_run(base, association, config, pushes, EPOCHS):
            found = figures_of(before, measured(base, association, "report", before))
            told = ", ".join(
                f"{name} {found[name]:+.2f}" for name in ("unlearned", "preserved", "change_reverse", "kl")
            )
            print(f"  after {epoch} epochs: {told}")


if __name__ == "__main__":
    main()
