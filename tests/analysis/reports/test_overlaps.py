"""Sizes and overlaps from factors, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.reports.base_weights import largest_singular, row_shares, size_of
from probewire.analysis.reports.overlaps import conflicts
from probewire.clients import Delta, Variant

RNG = np.random.default_rng(0)
W = RNG.normal(size=(12, 9))


def _delta(rank: int) -> Delta:
    return Delta(RNG.normal(size=(12, rank)), RNG.normal(size=(rank, 9)))


def test_sizes_are_those_of_the_product() -> None:
    delta = _delta(3)
    dense = delta.a.astype(np.float64) @ delta.b.astype(np.float64)
    found = size_of(delta, W)
    assert found["rank"] == 3
    assert found["norm"] == pytest.approx(np.linalg.norm(dense))
    assert found["singular"] == pytest.approx(np.linalg.svd(dense)[1][0])
    assert found["relative_norm"] == pytest.approx(np.linalg.norm(dense) / np.linalg.norm(W))
    assert found["relative_singular"] == pytest.approx(np.linalg.svd(dense)[1][0] / np.linalg.svd(W)[1][0], rel=1e-3)
    assert largest_singular(W) == pytest.approx(np.linalg.svd(W)[1][0], rel=1e-3)
    assert size_of(delta, None)["relative_norm"] is None
    twice = Delta(np.repeat(delta.a[:, :1], 2, axis=1), np.repeat(delta.b[:1], 2, axis=0))
    assert size_of(twice, W)["rank"] == 1


def test_rows_are_outputs_and_columns_inputs() -> None:
    """W here is [d_in, d_out]: row 4 of the weight is output 4."""
    delta = _delta(2)
    dense = delta.a.astype(np.float64) @ delta.b.astype(np.float64)
    assert row_shares(delta, W, "rows", [4])[0] == pytest.approx(np.linalg.norm(dense[:, 4]) / np.linalg.norm(W[:, 4]))
    assert row_shares(delta, W, "columns", [7])[0] == pytest.approx(np.linalg.norm(dense[7]) / np.linalg.norm(W[7]))
    assert row_shares(delta, W, "all", [])[0] == pytest.approx(np.linalg.norm(dense) / np.linalg.norm(W))


def test_two_variants_meet_where_both_change_a_weight() -> None:
    one, two = _delta(2), _delta(1)
    first = Variant({"w_down.1": one, "w_o.0": _delta(1)})
    [met] = conflicts(first, {"other": Variant({"w_down.1": two, "w_up.0": _delta(1)})})
    dense = [d.a.astype(np.float64) @ d.b.astype(np.float64) for d in (one, two)]
    expected = (dense[0] * dense[1]).sum() / (np.linalg.norm(dense[0]) * np.linalg.norm(dense[1]))
    assert (met.other, met.weight) == ("other", "w_down.1")
    assert met.cosine == pytest.approx(expected, abs=1e-9)
    q, _ = np.linalg.qr(one.a.astype(np.float64))
    unit = two.a[:, 0].astype(np.float64) / np.linalg.norm(two.a[:, 0])
    assert met.inputs == pytest.approx(np.linalg.norm(q.T @ unit) ** 2)
    [itself] = [c for c in conflicts(first, {"itself": first}) if c.weight == "w_down.1"]
    assert (itself.cosine, itself.inputs, itself.outputs) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    inside = Variant({"w_down.1": Delta(one.a[:, :1], RNG.normal(size=(1, 9)))})
    assert conflicts(inside, {"wider": first})[0].inputs == pytest.approx(1), "the smaller space lies in the other"
