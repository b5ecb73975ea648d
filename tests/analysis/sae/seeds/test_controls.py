"""The published random controls to the last printed digit, and what controls of the data keep and lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.seeds.controls import (
    PUBLISHED,
    PublishedControl,
    gaussian_like,
    random_dictionaries,
    shuffled,
)
from probewire.analysis.sae.seeds.stability import stability
from probewire.protos.errors import InvalidArgument


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda control: control.pwmcc)
def test_the_published_random_controls_are_reproduced(published: PublishedControl) -> None:
    found = stability(random_dictionaries(published.d_in, published.d_sae, published.seeds)).mean
    digits = len(published.pwmcc.partition(".")[2])
    assert f"{found:.{digits}f}" == published.pwmcc


def test_the_published_figures_are_those_of_the_log() -> None:
    assert [control.pwmcc for control in PUBLISHED] == ["0.24624", "0.298829"]
    assert PUBLISHED[0].seeds[:2] == (100_042, 100_123)


def test_random_dictionaries_are_unit_directions_that_their_seed_gives() -> None:
    found = random_dictionaries(8, 20, [3, 4])
    assert list(found) == ["random 3", "random 4"]
    assert found["random 3"].shape == (20, 8)
    np.testing.assert_allclose(np.linalg.norm(found["random 4"], axis=1), 1.0, rtol=1e-6)
    assert np.array_equal(found["random 3"], random_dictionaries(8, 20, [3])["random 3"])


def test_shuffling_keeps_each_dimension_and_loses_what_they_share() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4000, 1)) * [1.0, -2.0, 0.5] + 0.1 * rng.standard_normal((4000, 3))
    found = shuffled(rows, seed=1)
    np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(rows.astype(np.float32), axis=0))
    off = ~np.eye(3, dtype=bool)
    before, after = (np.asarray(np.corrcoef(each.T)) for each in (rows, found))
    assert np.abs(before[off]).min() > 0.9
    assert np.abs(after[off]).max() < 0.1


def test_a_gaussian_keeps_mean_and_covariance_and_loses_the_tails() -> None:
    rng = np.random.default_rng(0)
    rows: Any = (rng.standard_normal((20_000, 6)) ** 3) @ rng.standard_normal((6, 4)) + [5.0, 0.0, -1.0, 2.0]
    found = gaussian_like(rows, seed=1, n_rows=50_000)
    spread: Any = np.cov(rows.T)
    np.testing.assert_allclose(np.cov(found.T), spread, atol=0.03 * spread.max())
    np.testing.assert_allclose(found.mean(axis=0), rows.mean(axis=0), atol=0.03 * np.sqrt(spread.max()))

    def kurtosis(values: np.ndarray) -> float:
        centred = values - values.mean(axis=0)
        return float(((centred**4).mean(axis=0) / (centred**2).mean(axis=0) ** 2).mean())

    assert kurtosis(rows) > 5
    assert kurtosis(found) == pytest.approx(3.0, abs=0.15)


def test_a_covariance_without_full_rank_stays_so() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 2)) @ rng.standard_normal((2, 30))
    found = gaussian_like(rows, seed=0)
    assert found.shape == (50, 30)
    assert np.linalg.matrix_rank(found - found.mean(axis=0), tol=1e-3) == 2


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="each only once"):
        random_dictionaries(4, 4, [1, 1])
    with pytest.raises(InvalidArgument, match="d_in and d_sae are 1 or more"):
        random_dictionaries(0, 4, [1])
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        shuffled(np.array([[1.0, np.nan]]), 0)
    with pytest.raises(InvalidArgument, match=r"\[row, d_in\], got shape \[3\]"):
        gaussian_like(np.zeros(3), 0)
    with pytest.raises(InvalidArgument, match="two rows or more"):
        gaussian_like(np.zeros((1, 3)), 0)
