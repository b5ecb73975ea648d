"""What stands around the places where a unit is strongest: whether it is one thing, and the same in two domains."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from .rows import DomainRows

__all__ = ["Contexts"]

RADIUS = 8
TOP = 8
"""Places of each unit and domain."""
NULL = 200
"""Random sets of places that a cluster is held against."""


class Contexts:
    """Bags of the tokens within ±8 of a place, weighed by tf-idf over all rows."""

    def __init__(self, rows: DomainRows, rng: np.random.Generator) -> None:
        self.rows = rows
        once = np.unique(np.stack([rows.token, rows.block]), axis=1)  # a token counts once a block
        times: Counter[int] = Counter(once[0].tolist())
        n = len(np.unique(rows.block))
        self.weight = {token: float(np.log((1 + n) / (1 + count)) + 1.0) for token, count in times.items()}
        self._bags: dict[int, dict[int, float]] = {}
        domains = range(len(rows.names))
        self._places = {d: np.flatnonzero(rows.domain == d) for d in domains}
        self._bound = {d: self._chance(d, rng) for d in domains}

    def tops(self, unit: int, fires: NDArray[np.bool_]) -> dict[int, list[int]]:
        """Domain → the rows where a unit is strongest, from different blocks; domains where it fires in fewer are left out."""
        found: dict[int, list[int]] = {}
        strength = np.abs(self.rows.values[:, unit])
        for d, places in self._places.items():
            there = places[fires[places, unit]]
            order = there[np.argsort(-strength[there], kind="stable")].tolist()
            taken: set[int] = set()
            best: list[int] = []
            for row in order:
                block = int(self.rows.block[row])
                if block not in taken:  # two places of one text are alike whatever they are about
                    taken.add(block)
                    best.append(row)
                if len(best) == TOP:
                    break
            if len(best) == TOP:
                found[d] = best
        return found

    def clustered(self, domain: int, rows: list[int]) -> bool:
        """Whether these places of a domain are more alike than the 95th percentile of random ones."""
        return self._alike(rows) > self._bound[domain]

    def differ(self, a: list[int], b: list[int]) -> bool:
        """Whether places of two domains are less alike than those of each are among themselves."""
        across = float(np.mean([self._cosine(x, y) for x in a for y in b]))
        return across < min(self._alike(a), self._alike(b)) / 2

    def shown(self, unit: int, fires: NDArray[np.bool_]) -> dict[str, tuple[str, ...]]:
        """Domain → texts around the strongest places."""
        tops = self.tops(unit, fires)
        return {self.rows.names[d]: tuple(self.around(row) for row in rows[:4]) for d, rows in tops.items()}

    def around(self, row: int) -> str:
        """The text around a row, the row's own token in brackets."""
        low, high = self._ends(row)
        text = self.rows.text
        return "".join(text[low:row]) + f"⟦{text[row]}⟧" + "".join(text[row + 1 : high])

    def _chance(self, domain: int, rng: np.random.Generator) -> float:
        places = self._places[domain]
        drawn = [rng.choice(places, min(TOP, len(places)), replace=False).tolist() for _ in range(NULL)]
        return float(np.quantile([self._alike(some) for some in drawn], 0.95))

    def _alike(self, rows: list[int]) -> float:
        """Mean cosine of all pairs."""
        pairs = [self._cosine(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
        return float(np.mean(pairs)) if pairs else 0.0

    def _cosine(self, a: int, b: int) -> float:
        one, other = self._bag(a), self._bag(b)
        if len(other) < len(one):
            one, other = other, one
        return sum(value * other.get(token, 0.0) for token, value in one.items())

    def _bag(self, row: int) -> dict[int, float]:
        """Token → weight, of length 1."""
        if row not in self._bags:
            low, high = self._ends(row)
            times: Counter[int] = Counter(self.rows.token[low:high].tolist())
            bag = {token: count * self.weight[token] for token, count in times.items()}
            length = float(np.sqrt(sum(value * value for value in bag.values())))
            self._bags[row] = {token: value / length for token, value in bag.items()}
        return self._bags[row]

    def _ends(self, row: int) -> tuple[int, int]:
        """Half-open, within the row's block."""
        block = self.rows.block
        low, high = max(row - RADIUS, 0), min(row + RADIUS + 1, len(block))
        while block[low] != block[row]:
            low += 1
        while block[high - 1] != block[row]:
            high -= 1
        return low, high
