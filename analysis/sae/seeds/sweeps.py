"""Stability and reconstruction over k and d_sae, several seeds each, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from .cells import Cells, Condition, Trained, TrainOne, decoder_of
from .controls import random_dictionaries
from .resampling import Method
from .stability import THRESHOLD, Comparison, Stability, compare, stability

__all__ = ["RANDOM_SEEDS", "Row", "Sweep", "conditions", "run_sweep"]

RANDOM_SEEDS = 100_000
"""Added to a training's seed for the random dictionary beside it, as HUSAI does."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """All seeds of one condition."""

    condition: Condition
    seeds: tuple[int, ...]
    stability: Stability
    random: Stability
    """Of as many random dictionaries of the same shape."""
    comparison: Comparison
    explained_variances: NDArray[np.float64]
    """[seed]."""
    trained: tuple[Trained, ...]

    @property
    def explained_variance(self) -> float:
        """Mean over seeds."""
        return float(self.explained_variances.mean())

    def to_json(self) -> dict[str, Any]:
        """Figures without arrays."""
        found = self.comparison
        return {
            **asdict(self.condition),
            "seeds": list(self.seeds),
            "pwmcc": asdict(found.trained),
            "random_pwmcc": asdict(found.control),
            "difference": found.difference,
            "ratio": found.ratio,
            "lcb": found.lcb,
            "mann_whitney_p": found.p,
            "matched_latents": self.stability.matched(),
            "match_threshold": THRESHOLD,
            "one_to_one": self.stability.assigned_mean,
            "explained_variance": self.explained_variances.tolist(),
            "l0": [each.l0 for each in self.trained],
            "alive": [each.alive for each in self.trained],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """Conditions in the order they were given."""

    rows: tuple[Row, ...]

    def row(self, **wanted: int) -> Row:
        """The only one with these values: `row(k=8)`. Raises InvalidArgument where none or several have them."""
        found = [row for row in self.rows if all(getattr(row.condition, key) == value for key, value in wanted.items())]
        if len(found) != 1:
            raise InvalidArgument(
                f"{len(found)} conditions have {wanted}; there are: {[r.condition for r in self.rows]}"
            )
        return found[0]

    def to_json(self) -> list[dict[str, Any]]:
        """A dict a condition."""
        return [row.to_json() for row in self.rows]

    def table(self) -> str:
        """A markdown table, and how to read it."""
        head = ("k", "d_sae", "epochs", "seeds", "PWMCC", "random", "LCB", "p", "matched", "EV", "L0", "alive")
        lines = [head, ("---:",) * len(head), *(_cells(row) for row in self.rows)]
        return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", *self.remarks()])

    def remarks(self) -> list[str]:
        """What the figures do not say by themselves."""
        said = [
            (
                "random: dictionaries of random directions, which barely trained SAEs beat too; whether seeds agree on more than "
                "the data's covariance, matched_controls (its Gaussian control) tells."
            )
        ]
        poor = [row.condition for row in self.rows if row.explained_variance <= 0]
        if poor:
            named = ", ".join(f"k {c.k} of {c.d_sae}" for c in poor)
            said.append(
                f"EV is 0 or less at {named}: worse than the mean row, so train longer before reading anything from them."
            )
        return said


def conditions(ks: Sequence[int], d_saes: Sequence[int], epochs: int) -> list[Condition]:
    """Every k with every d_sae. Raises InvalidArgument for one that cannot be, such as k > d_sae."""
    return [Condition(k, d_sae, epochs) for d_sae in d_saes for k in ks]


def run_sweep(
    train_one: TrainOne,
    over: Sequence[Condition],
    seeds: Sequence[int],
    *,
    folder: str | Path,
    identity: Mapping[str, Any],
    method: Method = "seeds",
    matching: bool = False,
    resamples: int = 10_000,
    progress: bool = True,
) -> Sweep:
    """Train every condition from every seed, and compare the seeds of each with one another and with random dictionaries.

    `folder`: each finished training is noted there, and taken from there when the sweep is run again. `identity`: what
    else decides the outcome and is the same for all (the data's hash, the rate of learning), JSON-able; a folder of
    another identity is refused. `method`: of the intervals. `matching`: a one-to-one matching as well.
    Raises InvalidArgument for conditions or seeds that occur twice, or too few seeds for the intervals.
    """
    if not over or len(set(over)) != len(over) or len(set(seeds)) != len(seeds):
        raise InvalidArgument(f"give at least one condition, and each condition and seed once; got {over}, {seeds}")
    fewest = 3 if method == "jackknife" else 4
    if len(seeds) < fewest:
        raise InvalidArgument(
            f"intervals by {method!r} need {fewest} seeds or more, got {len(seeds)}: give more seeds"
            + (", or method='jackknife' (3 or more)" if fewest > 3 else "")
        )
    found: dict[Condition, list[Trained]] = {condition: [] for condition in over}
    total = len(over) * len(seeds)
    with Cells.open(folder, identity) as cells, progress_bar("training SAEs", "plans", show=progress) as move:
        move(0, total)
        for done, (condition, seed) in enumerate(((c, s) for c in over for s in seeds), start=1):
            trained = cells.get(condition, seed)
            if trained is None:
                cells.put(condition, seed, train_one(condition, seed))
                trained = cells.get(condition, seed)
                assert trained is not None, "what was put is there"
            found[condition].append(trained)
            move(done, total, f"trained k {condition.k}, d_sae {condition.d_sae}, seed {seed}")
    random: dict[tuple[int, int], Stability] = {}
    rows = [_row(c, tuple(seeds), some, random, method, matching, resamples, progress) for c, some in found.items()]
    return Sweep(tuple(rows))


def _row(
    condition: Condition,
    seeds: tuple[int, ...],
    trained: list[Trained],
    random: dict[tuple[int, int], Stability],
    method: Method,
    matching: bool,
    resamples: int,
    progress: bool,
) -> Row:
    dictionaries = {f"seed {seed}": decoder_of(each) for seed, each in zip(seeds, trained, strict=True)}
    own = stability(dictionaries, matching=matching, progress=progress)
    d_sae, d_in = next(iter(dictionaries.values())).shape
    if (d_sae, d_in) not in random:
        drawn = random_dictionaries(d_in, d_sae, [RANDOM_SEEDS + seed for seed in seeds])
        random[d_sae, d_in] = stability(drawn, matching=matching, progress=progress)
    control = random[d_sae, d_in]
    comparison = compare(own, control, method, resamples=resamples)
    variances = np.array([each.explained_variance for each in trained])
    return Row(condition, seeds, own, control, comparison, variances, tuple(trained))


def _cells(row: Row) -> tuple[str, ...]:
    found = row.comparison
    return (
        str(row.condition.k),
        str(row.condition.d_sae),
        str(row.condition.epochs),
        str(len(row.seeds)),
        str(found.trained),
        str(found.control),
        f"{found.lcb:+.4f}",
        f"{found.p:.1e}",
        f"{row.stability.matched():.2f}",
        f"{row.explained_variance:.3f}",
        _mean([each.l0 for each in row.trained]),
        _mean([each.alive for each in row.trained]),
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else "—"
