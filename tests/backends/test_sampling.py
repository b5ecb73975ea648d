"""Sampling by hand-set logits."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.sampling import choose_token, gumbel, logprobs_of
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
