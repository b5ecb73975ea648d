"""Intervals over pairs of seeds: what is drawn, how often they hold the truth, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from probewire.analysis.sae.seeds.resampling import (
    METHODS,
    Method,
    _draws,
    difference,
    interval,
    mann_whitney,
    pair_values,
    permutation,
)
from probewire.protos.errors import InvalidArgument


def likenesses(
    n: int, rng: np.random.Generator, *, own: float = 0.02, noise: float = 0.01, mean: float = 0.3
) -> NDArray[np.float64]:
    """Pairs that share what their seeds have: mean + u_a + u_b + noise."""
    u, off = rng.normal(0, own, n), np.triu(rng.normal(0, noise, (n, n)), 1)
    matrix = mean + u[:, None] + u[None, :] + off + off.T
    np.fill_diagonal(matrix, np.nan)
    return matrix


def test_the_mean_is_over_pairs_once() -> None:
    matrix = np.array([[np.nan, 0.2, 0.4], [0.2, np.nan, 0.9], [0.4, 0.9, np.nan]])
    assert pair_values(matrix).tolist() == [0.2, 0.4, 0.9]
    for method in ("jackknife", "pairs"):
        assert interval(matrix, method).mean == pytest.approx(0.5)
    found = interval(matrix, "jackknife")
    # Without seed 0: .9, without 1: .4, without 2: .2. Their mean is .5, Σ of squares .26, times 2/3; t(2) at .975: 4.30265.
    assert found.high - found.mean == pytest.approx(4.302652729 * np.sqrt(2 / 3 * 0.26))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_resamples_are_pairs_of_places_with_different_seeds() -> None:
    """Every draw of four seeds that has a pair at all, written out, against those that were drawn."""
    matrix = likenesses(4, np.random.default_rng(1))
    known = list[float]()
    for places in itertools.product(range(4), repeat=4):
        pairs = [matrix[a, b] for a, b in itertools.combinations(places, 2) if a != b]
        if pairs:
            known.append(float(np.mean(pairs)))
    drawn = _draws(matrix, "seeds", 60_000, np.random.default_rng(2))
    assert len(known) == 4**4 - 4
    assert np.isfinite(drawn).all()
    assert np.abs(drawn[:, None] - np.unique(np.round(known, 12))[None, :]).min(axis=1).max() < 1e-11
    assert drawn.mean() == pytest.approx(np.mean(known), abs=4 * np.std(known) / np.sqrt(60_000))
    assert drawn.std() == pytest.approx(np.std(known), rel=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_the_diagonal_has_no_say(method: Method) -> None:
    matrix = likenesses(6, np.random.default_rng(3))
    other = matrix.copy()
    np.fill_diagonal(other, 1e6)
    assert interval(matrix, method) == interval(other, method)


def test_intervals_hold_the_mean_as_often_as_is_said() -> None:
    """The pair bootstrap takes pairs that share a seed as independent, and fails half of the time."""
    rng = np.random.default_rng(4)
    held = dict.fromkeys(METHODS, 0)
    for number in range(400):
        matrix = likenesses(8, rng)
        for method in METHODS:
            found = interval(matrix, method, resamples=400, seed=number)
            held[method] += found.low <= 0.3 <= found.high
    share = {method: n / 400 for method, n in held.items()}
    assert 0.80 <= share["seeds"] <= 0.93
    assert 0.92 <= share["jackknife"] <= 0.98
    assert share["pairs"] <= 0.60


def test_differences_draw_the_seeds_of_either_for_themselves() -> None:
    rng = np.random.default_rng(5)
    one, two = likenesses(8, rng, mean=0.4), likenesses(5, rng)
    for method in METHODS:
        gap = difference(one, two, method)
        assert gap.mean == pytest.approx(pair_values(one).mean() - pair_values(two).mean())
        wider = max(interval(each, method).high - interval(each, method).low for each in (one, two))
        assert gap.high - gap.low >= 0.95 * wider
        assert gap.low < 0.1 < gap.high
        assert difference(two, one, method).mean == -gap.mean
    same = difference(one, one)
    assert same.mean == 0
    assert same.low < 0 < same.high


def test_a_seed_repeats_an_interval_to_the_bit() -> None:
    matrix = likenesses(5, np.random.default_rng(6))
    assert interval(matrix, seed=1) == interval(matrix, seed=1) != interval(matrix, seed=2)


def test_mann_whitney_is_one_sided() -> None:
    high, low = np.array([0.4, 0.5, 0.6]), np.array([0.1, 0.2, 0.3])
    assert mann_whitney(high, low) == pytest.approx(1 / 20)
    assert mann_whitney(low, high) == pytest.approx(1.0)


def test_the_permutation_test_moves_whole_dictionaries() -> None:
    rng = np.random.default_rng(7)
    matrix = likenesses(7, rng, own=0.001, noise=0.001)
    matrix[:3, :3] += 0.1
    assert permutation(matrix, 3) == 1 / 35
    null = [permutation(likenesses(7, rng), 3) for _ in range(200)]
    assert np.mean(np.array(null) <= 0.1) == pytest.approx(0.1, abs=0.06)
    drawn = permutation(likenesses(18, rng), 9, resamples=200)
    assert 1 / 201 <= drawn <= 1


@pytest.mark.parametrize(
    ("n", "method", "options", "reason"),
    [
        (3, "seeds", {}, "3 seeds are too few for an interval by 'seeds', which needs 4"),
        (2, "jackknife", {}, "needs 3"),
        (2, "pairs", {}, "needs 3"),
        (5, "bayes", {}, "allowed: seeds, jackknife, pairs"),
        (5, "seeds", {"confidence": 1.0}, "confidence lies between 0 and 1"),
        (5, "seeds", {"resamples": 10}, "100 or more"),
    ],
)
def test_what_has_no_interval_is_refused(n: int, method: Method, options: dict[str, float], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        interval(likenesses(n, np.random.default_rng(8)), method, **options)


def test_likenesses_that_are_no_numbers_are_refused() -> None:
    matrix = likenesses(5, np.random.default_rng(9))
    matrix[0, 1] = np.nan
    with pytest.raises(InvalidArgument, match="square \\[seed, seed\\] of finite numbers"):
        interval(matrix)
    with pytest.raises(InvalidArgument, match="two dictionaries of either kind"):
        permutation(matrix, 4)
