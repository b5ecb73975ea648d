"""Variants drawn for a model: deltas at all of its weights, or at some."""

from __future__ import annotations

import numpy as np

from probewire.backends.deltas.factors import BoundVariant
from probewire.backends.hooks.base import Backend
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.variant import Variant

__all__ = ["random_variant", "random_variants"]

SIZE = 0.06
"""Standard deviation of the factors: changes are then as large as a tenth of the weights."""


def random_variant(
    backend: Backend, rng: np.random.Generator, rank: int = 2, *, share: float = 1.0, leave_out: tuple[str, ...] = ()
) -> Variant:
    """Deltas of a rank at about a share of the weights that the model offers; with a bias where the weight has one."""
    offered = [one for one in backend.info.weights if one.name not in leave_out]
    chosen = [one for one in offered if rng.random() < share] or offered[:1]
    return Variant(
        {
            one.name: Delta(
                rng.normal(size=(one.d_in, rank)) * SIZE,
                rng.normal(size=(rank, one.d_out)) * SIZE,
                rng.normal(size=one.d_out) * SIZE if one.bias else None,
            )
            for one in chosen
        }
    )


def random_variants(backend: Backend) -> list[BoundVariant]:
    """Three: at every weight, at half of them, at a few."""
    rng = np.random.default_rng(5)
    made = [random_variant(backend, rng, rank, share=share) for rank, share in ((2, 1.0), (1, 0.5), (8, 0.1))]
    return [backend.weight_table.bind(one) for one in made]
