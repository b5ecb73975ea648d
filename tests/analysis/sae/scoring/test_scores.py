"""Scores from arrays: the formula for explained variance, its invariances, and every sum against sae-lens or by hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.model.configs import import_sae_lens
from probewire.analysis.sae.scoring.scores import ExplainedVariance, score_rows
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_sae import orthonormal, sae_of

D_IN = 64
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4000, D_IN))
NOISE = 0.5 * RNG.normal(size=X.shape)
"""Residuals of half the deviation: explained variance .75."""


def explained(x: np.ndarray, made: np.ndarray, parts: int = 7) -> float:
    found = ExplainedVariance()
    for a, b in zip(np.array_split(x, parts), np.array_split(made, parts), strict=True):
        found.add(a, b)
    return found.value


def saebench(x: np.ndarray, made: np.ndarray) -> float:
    """SAEBench 0.6.0's `explained_variance`, line by line (core/main.py), on one batch."""
    x_t, made_t = torch.tensor(x), torch.tensor(made)
    mean_sum_of_squares = x_t.pow(2).sum(dim=-1).mean(dim=0)
    mean_act_per_dimension = x_t.pow(2).mean(dim=0)
    residual = (x_t - made_t).pow(2).sum(dim=-1).mean(dim=0)
    mean_act = torch.cat([mean_act_per_dimension]).mean(dim=0)
    return float(1 - residual / (mean_sum_of_squares - mean_act**2))


def sae_lens(x: np.ndarray, made: np.ndarray) -> float:
    import_sae_lens()
    calculator: Any = import_module("sae_lens.evals").ExplainedVarianceCalculator()
    for a, b in zip(np.array_split(x, 3), np.array_split(made, 3), strict=True):
        calculator.add_batch(torch.tensor(b), torch.tensor(a))
    return float(calculator.compute())


def test_explained_variance_is_the_formula() -> None:
    direct = 1 - (NOISE**2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert explained(X, X + NOISE) == pytest.approx(direct, rel=1e-12)
    assert explained(X, X + NOISE, parts=400) == pytest.approx(direct, rel=1e-12)
    assert direct == pytest.approx(0.75, abs=0.01)
    assert explained(X, X) == 1.0
    assert explained(X, np.broadcast_to(X.mean(axis=0), X.shape)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (4, 0), (10, 0), (1, 5), (1e-3, 0), (10, 1000)])
def test_neither_scale_nor_offset_moves_it(scale: float, offset: float) -> None:
    x, made = scale * X + offset, scale * (X + NOISE) + offset
    assert explained(x, made) == pytest.approx(explained(X, X + NOISE), rel=1e-9)
    assert explained(x, made) == pytest.approx(sae_lens(x, made), rel=1e-6)


def test_saebench_is_moved_by_both() -> None:
    """Its "fixed" formula on the same rows: at scale 4, at scale 10 (more than everything explained), and at mean 5."""
    right = explained(X, X + NOISE)
    for scale, theirs in ((4, 0.666), (10, 1.444)):
        assert saebench(scale * X, scale * (X + NOISE)) == pytest.approx(theirs, abs=0.01)
        assert explained(scale * X, scale * (X + NOISE)) == pytest.approx(right, rel=1e-9)
    assert saebench(X + 5, X + NOISE + 5) > 0.98
    assert explained(X + 5, X + NOISE + 5) == pytest.approx(right, rel=1e-9)


def test_scores_by_hand() -> None:
    dictionary = orthonormal(6, D_IN)
    sae = sae_of(dictionary, b_enc=-0.5)
    latents = np.abs(RNG.normal(size=(300, 6))) + 1
    latents[:, 4] = 0
    latents[::3, 5] = 0
    rows = (latents @ dictionary).astype(np.float32)
    found = score_rows(sae, rows)
    fired = latents - 0.5 * (latents > 0)
    made = fired @ dictionary
    one = found.everything
    assert found.usual == one
    assert found.n_massive == 0
    assert one.l0 == pytest.approx((latents > 0).sum(axis=1).mean())
    assert one.l1 == pytest.approx(fired.sum(axis=1).mean(), rel=1e-5)
    assert one.mse == pytest.approx(((rows - made) ** 2).sum(axis=1).mean(), rel=1e-4)
    norms = np.linalg.norm(rows, axis=1), np.linalg.norm(made, axis=1)
    assert one.cossim == pytest.approx(((rows * made).sum(axis=1) / norms[0] / norms[1]).mean(), rel=1e-5)
    assert one.l2_ratio == pytest.approx((norms[1] / norms[0]).mean(), rel=1e-5)
    assert one.relative_reconstruction_bias == pytest.approx(
        (norms[1] ** 2).mean() / (rows * made).sum(axis=1).mean(), rel=1e-5
    )
    np.testing.assert_allclose(found.density, (latents > 0).mean(axis=0))
    assert found.dead.tolist() == [4]
    assert found.alive == pytest.approx(5 / 6)
    assert found.max_decoder_cosine == pytest.approx(np.zeros(6), abs=1e-6)
    named = found.to_json()
    assert named["sparsity"]["l0"] == one.l0
    assert named["misc_metrics"]["freq_over_10_percent"] == pytest.approx(5 / 6)


def test_massive_activations_are_set_apart() -> None:
    """One coordinate of a few rows carries nearly all the variance and is rebuilt; the rest is not."""
    dictionary = orthonormal(1, D_IN)
    rows = np.concatenate([X[:995], 5000 * dictionary + X[995:1000]]).astype(np.float32)
    found = score_rows(sae_of(np.concatenate([dictionary, -dictionary])), [rows[:300], rows[300:]])
    assert found.n_massive == 5
    assert found.usual.n_rows == 995
    assert found.everything.explained_variance > 0.99
    assert found.usual.explained_variance < 0.15
    given = score_rows(sae_of(np.concatenate([dictionary, -dictionary])), iter([rows]), median_norm=found.median_norm)
    assert given.everything == pytest.approx(found.everything) or given.everything.n_rows == 1000
    assert given.usual.explained_variance == pytest.approx(found.usual.explained_variance, rel=1e-9)


def test_what_cannot_be_scored_is_refused() -> None:
    sae = sae_of(orthonormal(4, D_IN), trained=False)
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        score_rows(sae, X)
    assert score_rows(sae, X, allow_untrained=True).everything.n_rows == 4000
    sae = sae_of(orthonormal(4, D_IN))
    with pytest.raises(InvalidArgument, match="width 64"):
        score_rows(sae, X[:, :8])
    with pytest.raises(InvalidArgument, match="read once only"):
        score_rows(sae, iter([X]))
    with pytest.raises(InvalidArgument, match="no rows"):
        score_rows(sae, [])
    with pytest.raises(InvalidArgument, match="without variance"):
        score_rows(sae, np.ones((5, D_IN)))
    broken = X.copy()
    broken[3, 3] = np.nan
    with pytest.raises(InvalidArgument, match="not finite"):
        score_rows(sae, broken)
    with pytest.raises(InvalidArgument, match="do not pair"):
        ExplainedVariance().add(X, X[:4])
