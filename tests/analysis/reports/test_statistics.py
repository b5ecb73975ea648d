"""Intervals against closed forms, brute force and how often they hold what they should."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from probewire.analysis.reports.score_interval import score_bounds, score_statistic
from probewire.analysis.reports.statistics import measured, paired, wilson
from probewire.protos.errors import InvalidArgument

stats: Any = import_module("scipy.stats")


def test_the_mean_and_its_normal_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    found = measured(values)
    error = values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.spread == pytest.approx(values.std(ddof=1), rel=1e-9)
    assert found.low == pytest.approx(values.mean() - stats.t.ppf(0.975, 399) * error, abs=0.06 * error)
    assert found.high == pytest.approx(values.mean() + stats.t.ppf(0.975, 399) * error, abs=0.06 * error)


def test_few_clusters_get_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    found = measured(values)
    assert (found.low, found.high) == pytest.approx((3.5 - half, 3.5 + half))
    assert found.p_at_least(5.0) == pytest.approx(stats.ttest_1samp(values, 5.0, alternative="less").pvalue)
    assert measured([3.0]).low == -np.inf
    assert measured([3.0, 5.0], clusters=["a", "a"]).high == np.inf


@pytest.mark.parametrize("n", [10, 25])
def test_it_holds_the_truth_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    intervals = [measured(rng.exponential(1.0, n), resamples=1000, seed=i) for i in range(400)]
    held = np.mean([found.low <= 1.0 <= found.high for found in intervals])
    assert 0.88 <= held <= 0.985, "a skewed distribution, few items: the plain percentiles hold .85 and .90"


def test_clusters_that_repeat_one_value_count_once() -> None:
    values = np.random.default_rng(3).normal(size=30)
    once, often = measured(values), measured(np.repeat(values, 5), clusters=list(np.repeat(np.arange(30), 5)))
    assert (often.low, often.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert (often.clusters, often.n) == (30, 150)
    alone = measured(np.repeat(values, 5))
    assert alone.high - alone.low < 0.6 * (often.high - often.low)


def test_weights_are_tokens_of_a_text() -> None:
    """The figure of texts with 1 and 3 tokens is that of the four tokens."""
    found = measured([1.0, 5.0] * 10, weights=[1, 3] * 10)
    assert found.value == pytest.approx(4.0)


def test_pairs_are_far_narrower_than_two_samples() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0, 10, 200)
    variant = base + rng.normal(0.5, 0.1, 200)
    found = paired(base, variant)
    assert found.low > 0.47
    assert found.high < 0.51
    assert found.value == pytest.approx((found.variant or 0) - (found.base or 0))


def test_no_changed_answer_is_no_proof() -> None:
    """z²/(n + z²), the closed form of the score interval without a discordant pair."""
    right = np.arange(20) % 2 == 0
    found = paired(right, right)
    z2 = stats.norm.ppf(0.975) ** 2
    assert (found.low, found.high) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)), abs=1e-9)
    assert found.p_at_least(-0.02) > 0.2
    assert found.changed == 0


@pytest.mark.parametrize(("better", "worse", "n"), [(3, 9, 40), (0, 5, 50), (8, 1, 24), (12, 12, 200)])
def test_the_score_statistic_is_of_the_likeliest_nuisance(better: int, worse: int, n: int) -> None:
    """Brute force: the multinomial's likelihood over all shares of "became a no" under the hypothesis."""
    for theta in (-0.3, -0.05, 0.0, 0.1):
        lost = np.linspace(max(1e-9, -theta), (1 - theta) / 2 - 1e-9, 400_001)
        with np.errstate(divide="ignore", invalid="ignore"):
            gained = lost + theta
            logs = stats.binom.logpmf(0, 0, 0.5) + (n - better - worse) * np.log(1 - lost - gained)
            logs = logs + (better * np.log(gained) if better else 0) + (worse * np.log(lost) if worse else 0)
        q = lost[np.nanargmax(logs)]
        expected = (better - worse - n * theta) / np.sqrt(n * (2 * q + theta * (1 - theta)))
        assert score_statistic(better, worse, n, theta) == pytest.approx(expected, abs=2e-3)


def test_the_score_interval_ends_where_the_statistic_is_z() -> None:
    low, high = score_bounds(3, 9, 40, 0.95)
    assert score_statistic(3, 9, 40, low) == pytest.approx(1.95996, abs=1e-4)
    assert score_statistic(3, 9, 40, high) == pytest.approx(-1.95996, abs=1e-4)
    assert low < -6 / 40 < high


def test_p_and_interval_say_the_same() -> None:
    rng = np.random.default_rng(5)
    for shares in (False, True):
        base = (rng.random(60) < 0.7).astype(float) if shares else rng.normal(size=60)
        variant = abs(base - (rng.random(60) < 0.2)) if shares else base + rng.normal(-0.2, 1, 60)
        found = paired(base, variant, shares=shares)
        for step in (-0.01, 0.01):
            assert (found.p_at_most(found.low + step) <= 0.025) == (step < 0)
            assert (found.p_at_least(found.high + step) <= 0.025) == (step > 0)


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(8, 10)
    z = 1.959963984540054
    for bound in (low, high):  # where the normal test of the bound itself is just not significant
        assert abs(0.8 - bound) == pytest.approx(z * np.sqrt(bound * (1 - bound) / 10))
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0


def test_seeds_repeat() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert measured(values, seed=4).low == measured(values, seed=4).low
    assert measured(values, seed=4).low != measured(values, seed=5).low


def test_a_value_that_is_no_number_makes_none() -> None:
    found = measured([1.0, float("nan")])
    assert np.isnan(found.value)
    assert found.to_json()["value"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measured([]), "at least one item"),
        (lambda: measured([1.0, 2.0], clusters=["a"]), "1 clusters are named for 2 items"),
        (lambda: measured([1.0], weights=[0.0]), "positive"),
        (lambda: paired([1.0], [1.0, 2.0]), "do not pair"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()
