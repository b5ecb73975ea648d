"""What a sweep of steered tuning comes to: a table, a configuration chosen by rule, and the outcome in the words of that rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arms import Arm
from .steered_run import figures_of

__all__ = ["Outcome", "Row", "Sweep"]

Floats = NDArray[np.float64]
Name = Literal["unlearns", "prevents", "not specific", "not selective", "no effect", "not compared"]
PRESERVED, COHERENT = 0.95, 0.02
"""Least share of siblings that stay right, and largest rise of cross-entropy on neutral text (nats)."""
_DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One run after so many epochs; 0 where nothing was trained."""

    arm: Arm
    amount: float
    """In units of the neuron's strong value."""
    control: int
    seed: int
    epochs: int
    last: bool
    said: Mapping[str, float]
    """Before training: g0, d0, the loss with and without the push, and shares of tokens that are pushed."""
    after: Mapping[str, Mapping[str, Any]]
    """choose and report → what `measured` gave, prompt by prompt."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the chosen configuration, on `report`: means over seeds with 95 % intervals over prompts."""

    name: Name
    """unlearns: below base, and more so than A, C and D. prevents: above base, below A. not specific: beats A and not C.

    not selective: siblings or neutral text pay for it. not compared: A, C or D was not run at its amount and epochs.
    """
    amount: float
    epochs: int
    drop: tuple[float, float, float]
    """Mean fall of A ÷ its base value, and the ends of its interval."""
    over: Mapping[Arm, tuple[float, float, float]]
    """Arm → by how much more it falls than there."""
    preserved: float
    ce: float
    seeds: int
    """How many of the seeds show the fall, and more than every other arm."""
    of_seeds: int


@dataclass(frozen=True, slots=True, eq=False)
class Sweep:
    """All rows, and the base's own figures."""

    rows: tuple[Row, ...]
    before: Mapping[str, Mapping[str, Any]]

    def figures(self, row: Row, which: Literal["choose", "report"] = "report") -> dict[str, float]:
        """What stands in the table of a row."""
        return figures_of(self.before[which], row.after[which])

    def table(self, which: Literal["choose", "report"] = "report") -> str:
        """A line a configuration, as Markdown: means over seeds and matched neurons, with their range where there are several."""
        groups: dict[tuple[Arm, float, int], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.arm, row.amount, row.epochs), []).append(row)
        told = [({**row.said, **self.figures(row, which)}) for row in self.rows]
        names = list(dict.fromkeys(name for one in told for name in one))
        lines = ["| arm | α/strong | epochs | runs | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 4)]
        for (arm, amount, epochs), own in groups.items():
            found = [told[self.rows.index(row)] for row in own]
            cells = [_cell([one.get(name, np.nan) for one in found]) for name in names]
            lines.append(f"| {arm} | {amount:g} | {epochs} | {len(own)} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def chosen(self) -> tuple[float, int] | None:
        """(amount, epochs) of arm B with the largest soft unlearning on `choose` among those that keep siblings and neutral text;

        None where none does.
        """
        found: dict[tuple[float, int], float] = {}
        for key in dict.fromkeys((row.amount, row.epochs) for row in self.rows if row.arm == "B"):
            own = [self.figures(row, "choose") for row in self._of("B", *key)]
            if _mean(own, "preserved") >= PRESERVED and _mean(own, "ce") <= COHERENT:
                found[key] = _mean(own, "unlearned")
        return max(found, key=lambda key: found[key]) if found else None

    def outcome(self) -> Outcome | None:
        """Of the chosen configuration, from `report`, once. None where the rule chose none."""
        chosen = self.chosen()
        if chosen is None:
            return None
        amount, epochs = chosen
        own = self._of("B", amount, epochs)
        fall = self._falls("B", amount, epochs)
        over: dict[Arm, Floats] = {}
        arms: tuple[Arm, ...] = ("A", "C", "D")
        for arm in arms:
            other = self._falls(arm, 0.0 if arm == "A" else amount, epochs)
            seeds = [seed for seed in fall if seed in other]
            if seeds:
                over[arm] = np.stack([fall[seed] - other[seed] for seed in seeds])
        drop = np.stack(list(fall.values()))
        intervals: dict[Arm, tuple[float, float, float]] = {arm: _interval(found) for arm, found in over.items()}
        figures = [self.figures(row) for row in own]
        preserved, ce = _mean(figures, "preserved"), _mean(figures, "ce")
        agree = sum(
            drop[index].mean() > 0 and all(found[index].mean() > 0 for found in over.values() if index < len(found))
            for index in range(len(drop))
        )
        name = _named(_interval(drop), intervals, preserved, ce, agree, len(drop))
        return Outcome(name, amount, epochs, _interval(drop), intervals, preserved, ce, agree, len(drop))

    def agreement(self) -> tuple[int, int]:
        """(right, of): in how many trained runs the sign of g₀ told that of the change of A on `report`, at the first epochs.

        Chance is a half; runs in which the association was bound to grow count too, so look at both signs.
        """
        trained = [row for row in self.rows if row.arm not in ("G", "H")]
        first = min((row.epochs for row in trained), default=0)
        own = [row for row in trained if row.epochs == first]
        return sum(np.sign(row.said["g0"]) == -np.sign(self.figures(row)["unlearned"]) for row in own), len(own)

    def _of(self, arm: Arm, amount: float, epochs: int) -> list[Row]:
        return [row for row in self.rows if (row.arm, row.amount, row.epochs) == (arm, amount, epochs)]

    def _falls(self, arm: Arm, amount: float, epochs: int) -> dict[int, Floats]:
        """Seed → [target prompt of report]: fall of A ÷ the base's mean; over matched neurons the mean."""
        before = np.asarray(self.before["report"]["A:target"])
        found: dict[int, list[Floats]] = {}
        for row in self._of(arm, amount, epochs):
            after = np.asarray(row.after["report"]["A:target"])
            found.setdefault(row.seed, []).append((before - after) / before.mean())
        return {seed: np.mean(own, axis=0) for seed, own in found.items()}


def _named(
    drop: tuple[float, float, float],
    over: Mapping[Arm, tuple[float, float, float]],
    preserved: float,
    ce: float,
    agree: int,
    seeds: int,
) -> Name:
    if preserved < PRESERVED or ce > COHERENT:
        return "not selective"
    if len(over) < 3:
        return "not compared"
    beats = {arm: ends[1] > 0 for arm, ends in over.items()}
    if not beats["A"]:
        return "no effect"
    if not beats["C"]:
        return "not specific"
    if drop[1] > 0 and beats["D"] and agree * 3 >= seeds * 2:
        return "unlearns"
    return "prevents"


def _interval(values: Floats) -> tuple[float, float, float]:
    """Mean of [seed, prompt], and the ends of its 95 % interval by resampling prompts."""
    prompts, rng = values.mean(axis=0), np.random.default_rng(0)
    means = prompts[rng.integers(len(prompts), size=(_DRAWS, len(prompts)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(prompts.mean()), float(low), float(high)


def _mean(found: Sequence[Mapping[str, float]], name: str) -> float:
    return float(np.mean([one[name] for one in found]))


def _cell(values: Sequence[float]) -> str:
    found = np.array(values, dtype=np.float64)
    if np.isnan(found).all():
        return "–"
    spread = f" [{np.nanmin(found):.2f}, {np.nanmax(found):.2f}]" if len(found) > 1 else ""
    return f"{np.nanmean(found):.3f}{spread}"
