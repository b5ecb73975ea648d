"""A model whose metric is a sum of what each unit is worth: faithfulness and its kin are known on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probewire.analysis.circuits.space import Mask, Space

__all__ = ["Additive"]


class Additive:
    """F(C) = base + Σ of the worth of units in C, plus `pair` where units 0 and 1 are both in."""

    ablation = "patch"
    pairs: tuple[Any, ...] = ()

    def __init__(self, worth: Sequence[float], *, base: float = 2.0, pair: float = 0.0) -> None:
        self.worth, self.base, self.pair = np.array(worth, dtype=float), base, pair
        self.space = Space(tuple(f"mlp_out.{layer}" for layer in range(len(worth))))

    def means(self, masks: Sequence[Mask]) -> Any:
        kept = np.stack([np.asarray(mask, dtype=float) for mask in masks])
        return self.base + kept @ self.worth + self.pair * kept[:, 0] * kept[:, 1]

    @property
    def empty(self) -> float:
        return self.base

    @property
    def full(self) -> float:
        return float(self.base + self.worth.sum() + self.pair)
