"""Hooks told in a line each."""

from __future__ import annotations

import numpy as np

from probewire.protos.spec import Affine, AllOf, AnyOf, Condition, Hook, Scale, Tensor, Where
from probewire.protos.telling import told


def test_an_affine_map_is_told_by_its_rank_and_strength() -> None:
    edit = Affine(Tensor.of(np.ones((8, 3))), Tensor.of(np.ones((3, 8))), alpha=0.5, heads=(1,))
    assert told(Hook("z.1", edit)) == "affine map of rank 3, alpha 0.5, heads 1"


def test_conditions_are_told_with_what_joins_them() -> None:
    one = Condition(1.5, unit=3)
    two = Condition(-0.2, site="embed", direction=Tensor.of([1.0, 2.0]), op="le", normalise=True, latch="mean")
    said = "unit 3 > 1.5", "the cosine of a direction of embed ≤ -0.2, latched by the prompt's mean"
    for when, expected in (
        (one, said[0]),
        (AllOf((one, two)), " and ".join(said)),
        (AnyOf((one, two)), " or ".join(said)),
    ):
        assert told(Hook("resid_post.1", Scale(2.0), where=Where(when=when))) == f"scale by 2 · when {expected}"
