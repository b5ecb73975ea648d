"""A circuit's run beside its controls: a random circuit of the same sizes, all weights with the same rank, no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ...clients import Variant
from ...protos.errors import InvalidArgument
from ..circuits.circuit import Circuit
from .base import load_base
from .circuit_mask import random_circuit, width_in, width_out
from .config import TuneConfig
from .examples import TrainExample
from .tuning import Tuned, tune

__all__ = ["ARMS", "Arm", "Controlled", "Trial", "tune_with_controls"]

Arm = Literal["circuit", "random", "all", "none"]
ARMS: tuple[Arm, ...] = get_args(Arm)
Measure = Callable[[Variant | None], Mapping[str, float]]
"""Figures of the model with a variant; of the base with None."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One run and what was measured of it; "none" has no run."""

    arm: Arm
    seed: int
    tuned: Tuned | None
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Controlled:
    """All trials: the four arms, each with every seed (none once)."""

    trials: tuple[Trial, ...]

    def of(self, arm: Arm, figure: str) -> list[float]:
        """[seed]: one figure of an arm."""
        return [trial.figures[figure] for trial in self.trials if trial.arm == arm]

    def table(self) -> str:
        """A line an arm: mean of each figure over seeds, and its least and largest."""
        names = list(self.trials[0].figures)
        lines = ["arm      " + "  ".join(f"{name:>24}" for name in names)]
        for arm in ARMS:
            cells: list[str] = []
            for name in names:
                values = np.array(self.of(arm, name))
                spread = f" [{values.min():.3f}, {values.max():.3f}]" if len(values) > 1 else ""
                cells.append(f"{f'{values.mean():.3f}{spread}':>24}")
            lines.append(f"{arm:<9}" + "  ".join(cells))
        return "\n".join(lines)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, a trial each."""
        return [
            {
                "arm": trial.arm,
                "seed": trial.seed,
                "variant": "" if trial.tuned is None else trial.tuned.variant.hash,
                "figures": dict(trial.figures),
            }
            for trial in self.trials
        ]


def tune_with_controls(
    base_folder: str | Path,
    train: Sequence[TrainExample],
    out: str | Path,
    config: TuneConfig,
    *,
    circuit: Circuit,
    measure: Measure,
    seeds: Sequence[int] = (0, 1, 2),
    general: Sequence[TrainExample | str] = (),
    equal: Literal["rank", "trainable"] = "rank",
    **options: Any,
) -> Controlled:
    """Tune the circuit, and what stands against it, on the same data with the same steps and seeds; measure each.

    Whether localisation helps is contested, so a circuit's figures mean nothing without these beside them. The random
    circuit has as many units at every site, drawn with the seed from the others. All weights: method "lora" on every
    weight of `config.weights`, with the same rank at each, or (`equal="trainable"`) with the rank that comes nearest to as many
    trainable numbers, and the same alpha / rank. `options` as of `tune`. Killed, it goes on.
    Raises InvalidArgument for a config of another method than "circuit", and as `tune`.
    """
    if config.method != "circuit":
        raise InvalidArgument(f"controls are of method 'circuit', got {config.method!r}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise InvalidArgument(f"seeds are distinct, at least one; got {list(seeds)}")
    root = Path(out)
    trials = [Trial("none", 0, None, measure(None))]
    for seed in seeds:
        own = config.with_(seed=seed)
        plain = own.with_(method="lora", full_rank=False, losses=_without_circuit(own.losses))
        runs: dict[Arm, tuple[TuneConfig, Circuit | None]] = {
            "circuit": (own, circuit),
            "random": (own, random_circuit(circuit, seed)),
            "all": (plain, None),
        }
        for arm, (how, chosen) in runs.items():
            if arm == "all" and equal == "trainable":
                how = _as_large(base_folder, how, trials[-1].tuned)
            tuned = tune(base_folder, train, root / f"{arm}-{seed}", how, circuit=chosen, general=general, **options)
            trials.append(Trial(arm, seed, tuned, measure(tuned.variant)))
    return Controlled(tuple(trials))


def _as_large(base_folder: str | Path, config: TuneConfig, circuits: Tuned | None) -> TuneConfig:
    """With the rank at which all weights have about as many trainable numbers as a circuit's run had."""
    assert circuits is not None, "the random circuit comes before all weights"
    base = load_base(base_folder)
    a_rank = sum(width_in(base, name) + width_out(base, name) for name in base.expand(config.weights))
    rank = max(1, round(circuits.variant.manifest.metrics["trainable"] / a_rank))
    return config.with_(rank=rank, alpha=config.alpha * rank / config.rank)


def _without_circuit(losses: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Nothing lies outside all weights, so there is nothing to keep coherent."""
    return None if losses is None else {name: weight for name, weight in losses.items() if name != "coherence"}
