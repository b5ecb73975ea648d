"""What two circuits differ in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..circuits import Circuit, Unit

__all__ = ["Difference", "difference", "spearman"]

FIGURES = ("faithfulness", "completeness", "minimality", "n_prompts")


@dataclass(frozen=True, slots=True)
class Difference:
    """From circuit a to circuit b."""

    added: tuple[Unit, ...]
    removed: tuple[Unit, ...]
    shared: tuple[Unit, ...]
    edges_added: int
    edges_removed: int
    rank_correlation: float | None
    """Spearman's, of the scores of shared units; None with fewer than three."""
    figures: tuple[tuple[str, float | None, float | None], ...]
    """(name, of a, of b) of those that differ."""
    notes: tuple[str, ...]
    """What makes the figures not comparable: another model, task or ablation."""

    @property
    def jaccard(self) -> float:
        """Shared ÷ all units."""
        return len(self.shared) / (len(self.shared) + len(self.added) + len(self.removed))

    def __repr__(self) -> str:
        rank = "" if self.rank_correlation is None else f", rank correlation {self.rank_correlation:.2f}"
        changed = "".join(f", {name} {_shown(old)} to {_shown(new)}" for name, old, new in self.figures)
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"Difference(+{len(self.added)} −{len(self.removed)} units, {len(self.shared)} shared{rank}{changed}{notes})"


def difference(a: Circuit, b: Circuit) -> Difference:
    """Units in and out, how alike shared ones are ranked, and figures that changed."""
    ours, theirs = (dict(zip(one.units, one.scores, strict=True)) for one in (a, b))
    shared = tuple(unit for unit in a.units if unit in theirs)
    old, new = ({(edge.sender, edge.receiver) for edge in one.edges} for one in (a, b))
    figures = [(name, getattr(a.origin, name), getattr(b.origin, name)) for name in FIGURES]
    notes = [
        f"other {name.replace('_', ' ')}"
        for name in ("model_hash", "task", "ablation")
        if getattr(a.origin, name) != getattr(b.origin, name)
    ]
    return Difference(
        tuple(unit for unit in b.units if unit not in ours),
        tuple(unit for unit in a.units if unit not in theirs),
        shared,
        len(new - old),
        len(old - new),
        spearman([ours[unit] for unit in shared], [theirs[unit] for unit in shared]),
        tuple(entry for entry in figures if entry[1] != entry[2]),
        tuple(notes),
    )


def spearman(x: list[float], y: list[float]) -> float | None:
    """Rank correlation; None for fewer than three, and where one of them does not vary."""
    if len(x) < 3:
        return None
    ranks = [_ranks(np.asarray(values)) for values in (x, y)]
    if any(float(rank.std()) == 0.0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Mean ranks, so that ties count the same."""
    below = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    return below + (same - 1) / 2.0


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
