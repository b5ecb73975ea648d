"""What circuits of edges are chosen from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ..attribution.edges import edge_mask
from .space import Mask, Scores

__all__ = ["EdgeSpace"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EdgeSpace:
    """Every edge of the coarse graph: embed, attention and MLP of each layer → branch inputs and logits."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]

    @property
    def exists(self) -> NDArray[np.bool_]:
        """[sender, receiver]"""
        return edge_mask(self.senders, self.receivers)

    @property
    def shape(self) -> tuple[int, ...]:
        """[sender, receiver]; entries where no edge is count for nothing."""
        return (len(self.senders), len(self.receivers))

    @property
    def size(self) -> int:
        """How many edges there are."""
        return int(self.exists.sum())

    def checked(self, mask: Any) -> Mask:
        """A mask of the right shape. Raises InvalidArgument for another."""
        found = np.asarray(mask)
        if found.dtype != np.bool_ or found.shape != self.shape:
            raise InvalidArgument(
                f"a mask is boolean of shape {list(self.shape)}, got {found.dtype} {list(found.shape)}"
            )
        return found

    def scores(self, scores: Scores) -> Floats:
        """Scores as a plain array [sender, receiver]."""
        values = np.asarray(getattr(scores, "values", scores), dtype=np.float64)
        if values.shape != self.shape or not np.isfinite(values).all():
            raise InvalidArgument(f"edge scores need shape {list(self.shape)} and no NaN, got {list(values.shape)}")
        return values

    def top(self, scores: Scores, n: int, *, absolute: bool = False) -> Mask:
        """The `n` edges of the highest scores (of the largest |score| with `absolute`)."""
        values = self.scores(scores)
        if not 0 <= n <= self.size:
            raise InvalidArgument(f"n must be in 0 … {self.size:,} (the edges of the graph), got {n}")
        ranked = np.where(self.exists, np.abs(values) if absolute else values, -np.inf).ravel()
        mask = np.zeros(ranked.size, dtype=bool)
        mask[np.argsort(-ranked, kind="stable")[:n]] = True
        return mask.reshape(self.shape)
