"""Sampling by hand-set logits."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.sampling.choice import choose_token, gumbel, logprobs_of
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Sampling

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert choose_token(np.array([1.0, 3.0, 3.0], dtype=np.float32), Sampling(), 0, 0) == 1


def test_frequencies_follow_the_distribution() -> None:
    drawn = [choose_token(LOGITS, Sampling(temperature=1.0), 5, i) for i in range(4000)]
    share = np.bincount(drawn, minlength=4) / 4000
    assert np.abs(share - [0.5, 0.25, 0.15, 0.1]).max() < 0.03


def test_temperature_sharpens() -> None:
    drawn = [choose_token(LOGITS, Sampling(temperature=0.25), 5, i) for i in range(1000)]
    assert np.mean(np.array(drawn) == 0) > 0.9  # 0.5^4 / Σ p^4 = 0.93


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.5), {0}),
        (Sampling(temperature=1.0, top_p=0.74), {0, 1}),
        (Sampling(temperature=1.0, top_p=0.76), {0, 1, 2}),
        (Sampling(temperature=1.0, top_k=3, top_p=0.8), {0, 1}),  # of the three left, 0.5/0.9 + 0.25/0.9 ≥ 0.8
    ],
)
def test_cuts(sampling: Sampling, allowed: set[int]) -> None:
    assert {choose_token(LOGITS, sampling, 1, i) for i in range(400)} == allowed


def test_noise_is_keyed_by_seed_and_index() -> None:
    assert np.array_equal(gumbel(1, 2, 8), gumbel(1, 2, 8))
    assert not np.array_equal(gumbel(1, 2, 8), gumbel(1, 3, 8))
    assert not np.array_equal(gumbel(1, 2, 8), gumbel(2, 2, 8))
    assert np.array_equal(gumbel(1, 2, 8), gumbel(1, 2, 12)[:8]), "a prefix, so a padded vocabulary changes nothing"


def test_logprobs_are_of_the_untempered_distribution() -> None:
    choice = logprobs_of(LOGITS + 7, 2, 2)
    assert choice.logprob == pytest.approx(np.log(0.15), abs=1e-6)
    assert [i for i, _ in choice.top] == [0, 1]
    assert choice.top[0][1] == pytest.approx(np.log(0.5), abs=1e-6)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-38, 1e-37, 1e-20, 9.9e-6])
@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_nearly_no_temperature_is_greedy(temperature: float, more: dict[str, float]) -> None:
    """Logits over a tiny temperature overflow float32, and the smallest of these float64."""
    logits = np.array([1.0, -np.inf, 3.0, 3.0, 2.9999], dtype=np.float32)
    sampling = Sampling(temperature=temperature, **more)
    assert [choose_token(logits, sampling, 7, i) for i in range(20)] == [2] * 20


def test_the_hottest_temperature_is_that_distribution() -> None:
    """exp(logits / 100) of logits 0 and 100 ln 3 is 1 to 3, however large both are."""
    logits = np.array([0.0, 100 * np.log(3.0)], dtype=np.float32) + np.float32(1000)
    drawn = [choose_token(logits, Sampling(temperature=100.0), 2, i) for i in range(4000)]
    assert abs(np.mean(drawn) - 0.75) < 0.02


@pytest.mark.parametrize("top_p", [5e-324, 1e-300, 1e-9])
def test_a_tiny_nucleus_is_the_likeliest_token(top_p: float) -> None:
    assert {choose_token(LOGITS, Sampling(temperature=100.0, top_p=top_p), 1, i) for i in range(100)} == {0}


def test_nothing_else_than_infinity_is_chosen_beside_it() -> None:
    logits = np.array([1.0, np.inf, 3.0], dtype=np.float32)
    assert choose_token(logits, Sampling(temperature=1.0), 0, 0) == 1


@pytest.mark.parametrize("name", ["temperature", "top_p"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-320])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=f"sampling.{name} must be a number in"):
        Sampling(**{name: value})
