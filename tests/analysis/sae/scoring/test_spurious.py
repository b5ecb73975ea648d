"""SCR: taking a planted spurious latent away frees the biased probe; taking random ones does not."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.scoring.probe_rows import ProbeRows
from probewire.analysis.sae.scoring.spurious import biography_rows, correlation_removal, mean_scores
from probewire.clients import Client, FailedPrecondition, InvalidArgument
from tests.analysis.sae.conftest import SITE
from tests.analysis.sae.planted_sae import orthonormal, probe_rows, sae_of

D_IN, LATENTS = 32, 12
DICTIONARY = orthonormal(LATENTS, D_IN)
RNG = np.random.default_rng(0)


def rows(first: int, second: int, n: int, loud: float = 4.5) -> np.ndarray:
    """Latent 0 or 1 says the first concept; 2 or 3 the second, more loudly; the rest nothing."""
    latents = 0.2 * np.abs(RNG.normal(size=(n, LATENTS)))
    latents[:, :4] = 0
    latents[:, first] = 3.0 + 0.5 * RNG.normal(size=n)
    latents[:, 2 + second] = loud + 0.5 * RNG.normal(size=n)
    return latents @ DICTIONARY + 0.3 * RNG.normal(size=(n, D_IN))


def data(name: str = "planted", loud: float = 4.5) -> ProbeRows:
    return probe_rows({f"{a}{b}": (rows(a, b, 40, loud), rows(a, b, 40, loud)) for a in (0, 1) for b in (0, 1)}, name)


DATA = data()


@cache
def _sae() -> LoadedSae:
    """Made when a test first asks: sae-lens takes seconds to load."""
    return sae_of(DICTIONARY)


def test_the_spurious_concept_is_removed() -> None:
    found = correlation_removal(_sae(), DATA, ns=(2, 5))
    assert found.clean.min() > 0.97
    assert found.biased[0] < 0.7, "the biased probe leans on the loud concept"
    assert found.worse_direction == 1
    assert found.metric(2).value > 0.8
    assert found.metric(2).low > 0.5
    named = found.to_json()
    room = found.clean[0] - found.biased[0]
    assert named["scr_metric_threshold_2"] == named["scr_dir1_threshold_2"]
    assert named["scr_dir1_threshold_2"] == pytest.approx((found.ablated[0, 0] - found.biased[0]) / room)


def test_random_latents_remove_nothing() -> None:
    random = sae_of(orthonormal(LATENTS, D_IN, seed=9) / 10)
    assert abs(correlation_removal(random, DATA, ns=(2,)).score(1, 2).value) < 0.25


def test_a_probe_without_bias_scores_zero() -> None:
    """Direction 2: a concept as loud as that is read well by the biased probe, so there is nothing to recover."""
    found = correlation_removal(_sae(), data(loud=15.0), ns=(2,))
    assert found.clean[1] - found.biased[1] < 0.001
    assert found.score(2, 2).value == 0


def test_biographies_on_the_server(client: Client) -> None:
    found = biography_rows(client, ("professor", "nurse"), SITE, n_train=6, n_test=4)
    assert found.classes == ("professor male", "professor female", "nurse male", "nurse female")
    assert found.train.pooled().shape == (24, 64)
    scores = correlation_removal(sae_of(orthonormal(16, 64)), found, ns=(2,))
    assert mean_scores([scores])["scr_dir1_threshold_2"] == scores.score(1, 2).value


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        correlation_removal(sae_of(DICTIONARY, trained=False), DATA)
    with pytest.raises(InvalidArgument, match="two concepts: four"):
        correlation_removal(_sae(), probe_rows({str(i): (rows(0, 0, 4), rows(0, 0, 4)) for i in range(3)}))
    with pytest.raises(InvalidArgument, match="d_sae = 12"):
        correlation_removal(_sae(), DATA, ns=(20,))
    found = correlation_removal(_sae(), DATA, ns=(2,))
    with pytest.raises(InvalidArgument, match="direction is 1 or 2"):
        found.score(3, 2)
    with pytest.raises(InvalidArgument, match="N = 5 was not run"):
        found.metric(5)
