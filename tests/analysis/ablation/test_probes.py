"""Linear readers on rows whose answer is known."""

from __future__ import annotations

import itertools
import sys
from unittest import mock

import numpy as np
import pytest

from probewire.analysis.ablation.probes import (
    Probe,
    auroc,
    cross_validated,
    difference_of_means,
    effect_sizes,
    fit_probe,
    principal_components,
    shuffled_accuracy,
)
from probewire.protos.errors import FailedPrecondition, InvalidArgument

WIDTH = 40


def planted(n: int = 400, strength: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [n, width] of uneven noise with ±strength/2 along a direction; labels; the direction, of length 1."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    labels = np.arange(n) % 2
    rows = rng.normal(size=(n, WIDTH)) * rng.uniform(0.8, 1.2, WIDTH) + 5.0
    return rows + strength * (labels - 0.5)[:, None] * direction, labels, direction


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("fit", [difference_of_means, fit_probe])
def test_a_planted_direction_is_recovered(fit: object) -> None:
    rows, labels, direction = planted(1000)
    probe = fit(rows, labels)  # pyright: ignore[reportCallIssue]
    assert cosine(probe.direction, direction) > 0.9
    assert probe.accuracy(rows, labels) > 0.9


def test_difference_of_means_is_numpys() -> None:
    rows, labels, _ = planted(30)
    probe = difference_of_means(rows, labels)
    ones, zeros = rows[1::2].mean(axis=0), rows[::2].mean(axis=0)
    np.testing.assert_allclose(probe.direction, ones - zeros)
    halfway = (ones + zeros) / 2
    assert probe.scores(halfway[None])[0] == pytest.approx(0, abs=1e-9)
    assert probe.scores(ones[None])[0] > 0 > probe.scores(zeros[None])[0]


def test_the_probe_is_a_stationary_point_of_its_loss() -> None:
    """L2 logistic regression in standardised columns: the gradient of ‖w‖²/2 + C·Σ log loss is zero."""
    rows, labels, _ = planted(80)
    c = 0.3
    probe = fit_probe(rows, labels, c=c)
    wrong = 1 / (1 + np.exp(-probe.scores(rows))) - labels
    scale, mean = rows.std(axis=0), rows.mean(axis=0)
    gradient = probe.direction * scale + c * wrong @ ((rows - mean) / scale)
    np.testing.assert_allclose(gradient, 0, atol=1e-2)
    assert wrong.sum() == pytest.approx(0, abs=1e-2)


def test_constant_columns_do_no_harm() -> None:
    rows, labels, _ = planted(60)
    rows[:, 3] = 7.0
    probe = fit_probe(rows, labels)
    assert np.isfinite(probe.direction).all()
    assert effect_sizes(rows, labels)[3] == 0
    assert probe.direction[3] == pytest.approx(0, abs=1e-9)


def test_shuffled_labels_give_chance() -> None:
    rows, labels, _ = planted(200, strength=8.0)
    train, test = np.arange(120), np.arange(120, 200)
    assert fit_probe(rows[train], labels[train]).accuracy(rows[test], labels[test]) == 1.0
    # 20 shuffles of 80 rows: a deviation of about 0.02 (shuffles share rows), so 0.1 is far out.
    assert shuffled_accuracy(rows, labels, train, test, n=20, c=1.0, seed=0) == pytest.approx(0.5, abs=0.1)


def test_cross_validation() -> None:
    rows, labels, _ = planted(100, strength=8.0)
    assert cross_validated(rows, labels) > 0.97
    noise = np.random.default_rng(0).normal(size=(100, WIDTH))
    assert cross_validated(noise, labels) == pytest.approx(0.5, abs=0.2)
    with pytest.raises(InvalidArgument, match="each label needs at least 2 examples"):
        cross_validated(rows[:3], labels[:3])


def test_principal_components() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(WIDTH, 3)))[0].T
    rows = rng.normal(size=(300, 3)) * [9.0, 5.0, 2.0] @ axes + 0.01 * rng.normal(size=(300, WIDTH)) + 100
    found = principal_components(rows, 3)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-9)
    for component, axis in zip(found, axes, strict=True):
        assert abs(component @ axis) > 0.97
    variances = ((rows - rows.mean(axis=0)) @ found.T).var(axis=0)
    assert (np.diff(variances) < 0).all()
    assert len(principal_components(rows[:5], 8)) == 4


def test_effect_sizes_are_cohens() -> None:
    rows = np.array([[1.0, 0], [3, 0], [2, 0], [6, 0], [8, 0]])
    labels = np.array([0, 0, 0, 1, 1])
    pooled = np.sqrt((1 + 0 + 1 + 1 + 1) / 3)
    np.testing.assert_allclose(effect_sizes(rows, labels), [(7 - 2) / pooled, 0])


def test_auroc_by_every_pair() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 6, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [
        (s > t) + 0.5 * (s == t)
        for (s, a), (t, b) in itertools.product(zip(scores, labels, strict=True), repeat=2)
        if a > b
    ]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auroc(labels.astype(float), labels) == 1
    assert auroc(np.zeros(60), labels) == 0.5


def test_accuracy() -> None:
    probe = Probe(np.array([1.0, 0.0]), -2.0)
    assert probe.accuracy(np.array([[3.0, 9], [1, 9], [1, 9], [5, 9]]), np.array([1, 0, 1, 1])) == 0.75


def test_what_is_missing_is_named() -> None:
    rows, labels, _ = planted(20)
    with (
        mock.patch.dict(sys.modules, {"sklearn.linear_model": None}),
        pytest.raises(FailedPrecondition, match=r"pip install 'probewire\[analysis\]'"),
    ):
        fit_probe(rows, labels)
