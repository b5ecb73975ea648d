"""TPP: the planted latents of a class take its probe to chance and no other; random ones take nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from probewire.analysis.ablation.probes import Probe
from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.scoring.targeted import effects, mean_scores, strongest, targeted_perturbation
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_sae import orthonormal, probe_rows, sae_of

D_IN, CLASSES, LATENTS = 32, 4, 20
DICTIONARY = orthonormal(LATENTS, D_IN)
RNG = np.random.default_rng(0)


def rows(label: int, n: int) -> np.ndarray:
    """Latents 2i and 2i + 1 fire in class i, the last ones anywhere."""
    latents = np.abs(RNG.normal(size=(n, LATENTS)))
    latents[:, : 2 * CLASSES] = 0
    latents[:, 2 * label : 2 * label + 2] = 4 + RNG.normal(size=(n, 2)) * 0.5
    return latents @ DICTIONARY


DATA = probe_rows({f"class {i}": (rows(i, 40), rows(i, 30)) for i in range(CLASSES)})


@cache
def _sae() -> LoadedSae:
    """Made when a test first asks: sae-lens takes seconds to load."""
    return sae_of(DICTIONARY)


def test_planted_latents_are_targeted() -> None:
    found = targeted_perturbation(_sae(), DATA, ns=(1, 2, 500))
    assert found.ns == (1, 2), "500 of 20 latents cannot be"
    assert (found.before == 1).all()
    score = found.score(2)
    assert score.value == pytest.approx(0.5, abs=0.02), "a balanced probe without its concept is at chance"
    assert found.share(2).value == pytest.approx(1.0, abs=0.04)
    assert found.unintended(2).value == pytest.approx(0, abs=0.02)
    assert score.low <= score.value <= score.high
    assert found.score(1).value < score.value


def test_random_latents_are_not() -> None:
    random = sae_of(orthonormal(LATENTS, D_IN, seed=9) @ np.diag(np.r_[np.zeros(D_IN - 12), np.ones(12)]) / 5)
    found = targeted_perturbation(random, DATA, ns=(2, 5))
    assert abs(found.score(2).value) < 0.1
    assert abs(found.share(2).value) < 0.2


def test_the_local_ablation_is_the_edit_of_every_token() -> None:
    """Mean over tokens of decode(f') + (x − decode(f)), as SAEBench computes it."""
    sae = sae_of(orthonormal(LATENTS, D_IN, seed=3) * 1.5, b_enc=0.1)
    found = targeted_perturbation(sae, DATA, ns=(3,))
    tokens, lengths = DATA.test.tokens, DATA.test.lengths

    def by_token(ids: Sequence[int]) -> np.ndarray:
        latents = sae.encode(tokens)
        changed = latents.copy()
        changed[:, ids] = 0
        edited = sae.decode(changed) + (tokens - sae.decode(latents))
        return edited.reshape(len(lengths), -1, D_IN).mean(axis=1, dtype=np.float64)

    other = targeted_perturbation(sae, DATA, ns=(3,), ablate=by_token)
    np.testing.assert_array_equal(found.after, other.after)


def test_effects_by_hand() -> None:
    latents = np.array([[3.0, 1, 2], [1, 1, 2], [0, 5, 2], [0, 5, 2]])
    probe = Probe(np.array([2.0, -1.0]), 0.0)
    w_dec = np.array([[1.0, 0], [0, 1], [1, 1]])
    np.testing.assert_allclose(effects(latents, np.array([1, 1, 0, 0]), probe, w_dec), [2 * 2, 0, 0])
    np.testing.assert_allclose(effects(latents, np.array([1, 1, 0, 0]), probe, w_dec, signed=True), [4, 4, 0])
    assert strongest(np.array([0.5, -3, 0, 2]), 3).tolist() == [3, 0]


def test_names_are_saebenchs() -> None:
    found = targeted_perturbation(_sae(), DATA, ns=(2, 5))
    named = found.to_json()
    assert named["tpp_threshold_2_total_metric"] == found.score(2).value
    assert named["tpp_threshold_2_total_metric"] == pytest.approx(
        named["tpp_threshold_2_intended_diff_only"] - named["tpp_threshold_2_unintended_diff_only"]
    )
    assert mean_scores([found, found])["tpp_threshold_5_total_metric"] == found.score(5).value
    assert set(named["latents_with_effect"]) == set(DATA.classes)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        targeted_perturbation(sae_of(DICTIONARY, trained=False), DATA)
    two = probe_rows({f"class {i}": (rows(i, 10), rows(i, 10)) for i in range(2)})
    with pytest.raises(InvalidArgument, match="three or more"):
        targeted_perturbation(_sae(), two)
    with pytest.raises(InvalidArgument, match="d_sae = 20"):
        targeted_perturbation(_sae(), DATA, ns=(500,))
    with pytest.raises(InvalidArgument, match="N = 7 was not run"):
        targeted_perturbation(_sae(), DATA, ns=(2,)).score(7)
