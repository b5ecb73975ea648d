"""Intervals: they cover what they should, about as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.sae.scoring.intervals import Estimate, mean_of_means, ratio_of_sums, resampled_counts
from probewire.clients import InvalidArgument


def test_a_mean_of_means_weighs_groups_alike() -> None:
    found = mean_of_means([np.ones(4), np.zeros(400)], seed=0)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.5, 0.5, 404)
    with pytest.raises(InvalidArgument, match="at least one"):
        mean_of_means([np.ones(3), np.zeros(0)], seed=0)


def test_it_covers_the_truth() -> None:
    """100 samples of 200 coin tosses: 95 % intervals, of which 88 or more hold the truth unless luck is very bad."""
    rng = np.random.default_rng(0)
    held = [mean_of_means([rng.random(200) < 0.7], seed=seed) for seed in range(100)]
    assert sum(found.low <= 0.7 <= found.high for found in held) >= 88
    width = np.mean([found.high - found.low for found in held])
    assert width == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 200), rel=0.05)


def test_a_ratio_of_sums() -> None:
    above, below = np.array([1.0, 2, 3]), np.array([2.0, 4, 6])
    found = ratio_of_sums(above, below, seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert np.isnan(ratio_of_sums(np.zeros(3), np.zeros(3), seed=0).value)
    with pytest.raises(InvalidArgument, match="do not pair"):
        ratio_of_sums(above, below[:2], seed=0)


def test_seeds_decide() -> None:
    assert np.array_equal(resampled_counts(9, seed=3), resampled_counts(9, seed=3))
    assert not np.array_equal(resampled_counts(9, seed=3), resampled_counts(9, seed=4))
    assert (resampled_counts(9, seed=3).sum(axis=1) == 9).all()
    with pytest.raises(InvalidArgument, match="nothing to resample"):
        resampled_counts(0, seed=0)
    assert str(Estimate.of(0.5, np.array([0.25, 0.75, np.nan]), 3)).startswith("0.500 [0.26")
