"""Steered tuning on a known capital: choose a neuron by measurement, sweep the arms, print the table and what it comes to.

python benchmarks/surgery.py steered [--size small|full]; small: about ten minutes of one core; killed, it goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace

from child import BUILD

from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.steered.arms import Arm, Neuron
from probewire.analysis.tuning.steered.association import known_association
from probewire.analysis.tuning.steered.neuron_choice import Candidate, choose_neurons
from probewire.analysis.tuning.steered.sweep import AMOUNTS, run_sweep
from probewire.backends.checkpoints import resolve_model

FOLDER = BUILD / "surgery-tuning"
CONFIG = TuneConfig(method="steered", lr=1e-4, losses={"task": 1.0}, normalise_losses=False)
SMALL: dict[Arm, tuple[float, ...]] = {
    "A": (0.0,), "B": (10.0, 30.0), "C": (10.0, 30.0), "D": (10.0, 30.0), "E": (10.0,), "F": (0.0,), "G": (0.0,), "H": (10.0,)
}  # fmt: skip


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--top", type=int, default=12)
    args = parser.parse_args()
    since, small = time.process_time(), args.size == "small"
    association = known_association()
    if small:
        report = dict(association.report) | {"control": association.report["control"][::3]}
        association = replace(association, report=report, neutral=association.neutral[:12], indirect=())
    base = load_base(resolve_model().folder)
    FOLDER.mkdir(parents=True, exist_ok=True)
    neuron = _neuron(base, args.top)
    sweep = run_sweep(
        base, association, neuron, FOLDER / f"steered-{args.size}", CONFIG,
        amounts=SMALL if small else AMOUNTS, epochs=(10,) if small else (5, 10, 20, 30),
        seeds=(0,) if small else (0, 1, 2), controls=1 if small else 3,
    )  # fmt: skip
    print(sweep.table())
    right, of = sweep.agreement()
    print(f"the sign of g₀ told the sign of the change in {right} of {of} runs")
    print(f"by the rule: {sweep.outcome()}")
    print(f"{time.process_time() - since:.0f} s of CPU")


def _neuron(base: Base, top: int) -> Neuron:
    """The candidate of largest drop less that on siblings, on `choose`; kept, so that a killed run goes on with it."""
    path = FOLDER / "neuron.json"
    if path.exists():
        candidates = [Candidate(**one) for one in json.loads(path.read_text())]
    else:
        choose = known_association().choose
        candidates = choose_neurons(base, choose["target"], choose["control"][:6], top=top, controls=19)
        path.write_text(json.dumps([asdict(one) for one in candidates]))
    for one in candidates:
        print(one)
    best = max(candidates, key=lambda one: one.drop - one.sibling_drop)
    return Neuron(best.layer, best.unit, best.polarity, best.strong)


if __name__ == "__main__":
    main()
