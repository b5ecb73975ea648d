"""Counts by hand, divergences against scipy, intervals by what they must cover."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.latents.statistics import (
    HIGH,
    LOW,
    LatentCounts,
    bernoulli_kl,
    bin_of,
    compare,
    magnitude_kl,
)
from probewire.analysis.sae.latents.stream import TextWindow
from probewire.clients import InvalidArgument
from tests.analysis.sae.text_windows import random_windows, window

entropy: Any = import_module("scipy.stats").entropy


def counted(windows: list[TextWindow], d_sae: int, blocks: int = 4) -> LatentCounts:
    counts = LatentCounts.empty(d_sae, blocks=blocks)
    for item in windows:
        counts.add(item)
    return counts


def test_counts_by_hand() -> None:
    one = window("abcd", {1: {0: 2.0, 2: 0.5}, 3: {0: 3.0}}, text=0)
    two = window("ab", {1: {2: 16.0}}, text=5)
    counts = counted([one, two], 4)
    assert counts.n_tokens == 4
    assert counts.tokens.tolist() == [3, 1, 0, 0], "text 5 goes to block 1; the first token of each is not counted"
    assert counts.n_fired.tolist() == [2, 0, 2, 0]
    assert counts.rate.tolist() == [0.5, 0, 0.5, 0]
    assert counts.mean.tolist() == [2.5, 0, 8.25, 0]
    assert counts.peak.tolist() == [3, 0, 16, 0]
    bins = counts.bins.sum(axis=0)
    assert [np.flatnonzero(row).tolist() for row in bins] == [[11], [], [9, 14], []], "2 … 4 is bin 11; 0.5 and 16"
    assert bins.sum(axis=1).tolist() == counts.n_fired.tolist()


def test_bins_at_their_edges_and_beyond() -> None:
    values = np.array([2.0**-30, 2.0**LOW, 1.0, 1.999, 2.0, 2.0**40], dtype=np.float32)
    assert bin_of(values, 1).tolist() == [0, 0, 10, 10, 11, HIGH - LOW - 1]
    assert bin_of(np.array([1.0, 1.2, 1.5], dtype=np.float32), 4).tolist() == [40, 41, 42]


def test_parts_of_a_corpus_add_up() -> None:
    windows = random_windows(9, 6)
    whole, parts = counted(windows, 6), counted(windows[:4], 6).merged(counted(windows[4:], 6))
    for name in ("tokens", "fired", "bins", "peak"):
        assert (getattr(whole, name) == getattr(parts, name)).all()
    assert whole.total == pytest.approx(parts.total)
    with pytest.raises(InvalidArgument, match="do not add up"):
        whole.merged(counted(windows, 6, blocks=3))


@pytest.mark.parametrize(("fired_p", "n_p", "fired_q", "n_q"), [(30, 100, 5, 80), (0, 10, 7, 9), (3, 3, 0, 1000)])
def test_bernoulli_against_scipy(fired_p: int, n_p: int, fired_q: int, n_q: int) -> None:
    p, q = (fired_p + 1) / (n_p + 2), (fired_q + 1) / (n_q + 2)
    found = bernoulli_kl(np.array([fired_p]), n_p, np.array([fired_q]), n_q)
    assert found[0] == pytest.approx(entropy([p, 1 - p], [q, 1 - q]), rel=1e-12)


def test_magnitudes_against_scipy() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.integers(0, 40, size=(5, 26)), rng.integers(0, 3, size=(5, 26))
    found = magnitude_kl(p, q)
    assert found == pytest.approx([entropy(a + 1, b + 1) for a, b in zip(p, q, strict=True)], rel=1e-12)
    assert magnitude_kl(p, p) == pytest.approx(np.zeros(5), abs=1e-15)


def test_divergence_is_that_of_the_whole_activation() -> None:
    """Not firing is one more bin; the smoothed shares of the others are those of the magnitudes, times the rate."""
    first, second = counted(random_windows(6, 5, rate=0.5), 5), counted(random_windows(8, 5, seed=1), 5)
    found = compare(first, second)

    def shares(side: LatentCounts, latent: int) -> list[float]:
        rate = (side.n_fired[latent] + 1) / (side.n_tokens + 2)
        bins = side.bins.sum(axis=0)[latent] + 1
        return [1 - rate, *(rate * bins / bins.sum())]

    expected = [entropy(shares(first, latent), shares(second, latent)) for latent in range(5)]
    assert found.divergence == pytest.approx(expected, rel=1e-12)
    assert found.importance == pytest.approx(found.rate_divergence + found.magnitude_divergence, rel=1e-12)


def test_a_planted_difference_comes_first_and_its_interval_is_clear_of_the_rest() -> None:
    first, second = random_windows(40, 8), random_windows(40, 8, seed=1)
    planted = [
        window(w.tokens, {1: {3: 100.0}, 2: {3: 90.0}, 5: {3: 120.0}, 6: {3: 100.0}, 7: {3: 80.0}}, text=w.text)
        for w in first
    ]
    counts = counted(first, 8, blocks=20)
    for extra in planted:
        counts.add(extra)
    ranked = compare(counts, counted(second, 8, blocks=20), ("new", "old")).ranking(8, replicates=200)
    assert ranked[0].latent == 3
    assert ranked[0].low <= ranked[0].score <= ranked[0].high
    assert ranked[0].low > ranked[1].high
    assert ranked[0].means[0] > 10 > ranked[0].means[1]
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)


def test_intervals_widen_with_fewer_texts_and_repeat_with_the_seed() -> None:
    few, many = (
        compare(counted(random_windows(n, 3), 3, 20), counted(random_windows(n, 3, seed=9), 3, 20)) for n in (20, 400)
    )
    width = [np.mean([item.high - item.low for item in found.ranking(3, by="rate")]) for found in (few, many)]
    assert width[1] < 0.5 * width[0]
    assert few.ranking(3) == few.ranking(3)
    assert few.ranking(3) != few.ranking(3, seed=1)


def test_refusals() -> None:
    counts = counted(random_windows(2, 4), 4)
    with pytest.raises(InvalidArgument, match="one SAE"):
        compare(counts, LatentCounts.empty(5, blocks=4))
    with pytest.raises(InvalidArgument, match="nothing was counted of the retain corpus"):
        compare(counts, LatentCounts.empty(4, blocks=4), ("forget", "retain"))
    with pytest.raises(InvalidArgument, match="allowed: importance"):
        compare(counts, counts).ranking(by="loudness")
    with pytest.raises(InvalidArgument, match="confidence"):
        compare(counts, counts).ranking(confidence=1.0)
