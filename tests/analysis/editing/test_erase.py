"""LEACE against its definition: the covariance, every linear predictor, and the formula written out."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing.erase import Eraser, difference_projection, inlp, leace
from probewire.clients import Affine, InvalidArgument, ProjectOut

Array = np.ndarray[Any, Any]


def _rows(n: int = 600, width: int = 12, classes: int = 2, seed: int = 0) -> tuple[Array, Array]:
    """Correlated columns of unlike scales with a mean far from zero, and classes that several of them tell."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    mixing = rng.normal(size=(width, width)) * np.logspace(-1, 1, width)
    X = rng.normal(size=(n, width)) @ mixing + 30 * rng.normal(size=width)
    return X + rng.normal(size=(classes, width))[labels] @ mixing, labels


def _cross(rows: Array, labels: Array) -> float:
    onehot = (labels[:, None] == np.unique(labels)).astype(float)
    return float(np.linalg.norm((rows - rows.mean(0)).T @ (onehot - onehot.mean(0)) / len(rows)))


@pytest.mark.parametrize("classes", [2, 4])
def test_nothing_linear_is_left_and_nothing_more_is_taken(classes: int) -> None:
    X, z = _rows(classes=classes)
    eraser = leace(X, z)
    erased = eraser(X)
    assert eraser.rank == classes - 1
    assert _cross(erased, z) / _cross(X, z) <= 1e-10
    np.testing.assert_allclose(erased.mean(axis=0), X.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(eraser(erased), erased, atol=1e-8 * np.abs(X).max())
    assert np.linalg.matrix_rank(X - erased) <= classes, "the change lies in few directions and a constant"


def test_the_formula_written_out() -> None:
    X, z = _rows(width=6)
    mean, Z = X.mean(axis=0), np.eye(2)[z]
    covariance = np.cov(X.T, bias=True)
    cross = (X - mean).T @ (Z - Z.mean(axis=0)) / len(X)
    values, vectors = np.linalg.eigh(covariance)
    W = vectors @ np.diag(values**-0.5) @ vectors.T
    target = W @ cross
    projector = target @ np.linalg.pinv(target)  # onto the range of W Σxz
    expected = X - (X - mean) @ (np.linalg.inv(W) @ projector @ W).T
    np.testing.assert_allclose(leace(X, z)(X), expected, rtol=1e-8, atol=1e-8 * np.abs(X).max())


def test_it_is_the_least_change_of_all_that_erase() -> None:
    """In the norm of the rows' own inverse covariance; any other L' with R L' = I changes more."""
    X, z = _rows(width=6)
    eraser = leace(X, z)
    inverse = np.linalg.inv(np.cov(X.T))

    def cost(left: Array) -> float:
        change = (X - eraser.mean) @ eraser.right.T @ left.T
        return float(np.einsum("ni,ij,nj->", change, inverse, change))

    rng = np.random.default_rng(1)
    for _ in range(20):
        other = rng.normal(size=(6, 1))
        other = other / (eraser.right @ other)
        assert cost(eraser.left) < cost(0.7 * eraser.left + 0.3 * other)


def test_a_regression_without_penalty_finds_nothing() -> None:
    X, z = _rows()
    p = z.mean()
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    for rows, least, most in ((X, 0.0, entropy / 2), (leace(X, z)(X), entropy - 1e-6, entropy + 1e-6)):
        spread = rows.std(axis=0)
        scaled = (rows - rows.mean(axis=0)) / np.where(spread > 0, spread, 1)
        model = (
            import_module("sklearn.linear_model").LogisticRegression(C=np.inf, max_iter=5000, tol=1e-10).fit(scaled, z)
        )
        loss = -np.log(np.abs(1 - z - model.predict_proba(scaled)[:, 1])).mean()
        assert least <= loss <= most
    assert np.abs(model.coef_).max() <= 1e-3


def test_a_number_as_the_concept() -> None:
    X, _ = _rows()
    z = X[:, 3] + np.random.default_rng(3).normal(size=len(X))
    erased = leace(X, z)(X)
    gap = [np.abs((rows - rows.mean(0)).T @ (z - z.mean())).max() for rows in (X, erased)]
    assert gap[1] <= 1e-10 * gap[0]


def test_the_projection_of_iterated_probes_needs_rounds_where_leace_needs_none() -> None:
    X, z = _rows(n=1200)
    one, many = inlp(X, z, 1), inlp(X, z, 8)
    assert _cross(one(X), z) > 1e-3 * _cross(X, z), "a round leaves what a probe of the rest finds"
    assert many.rank > leace(X, z).rank == 1
    np.testing.assert_allclose(many.right @ many.right.T, np.eye(many.rank), atol=1e-10)


def test_the_difference_of_means_is_gone_through_the_origin() -> None:
    X, z = _rows()
    found = difference_projection(X, z)
    gap = X[z == 1].mean(axis=0) - X[z == 0].mean(axis=0)
    erased = found(X)
    assert np.abs(erased @ gap).max() <= 1e-9 * np.abs(X @ gap).max()
    np.testing.assert_allclose(found.right[0], gap / np.linalg.norm(gap))


def test_its_edit_is_the_affine_map_of_the_same_numbers() -> None:
    X, z = _rows()
    eraser = leace(X, z)
    edit = eraser.edit
    assert isinstance(edit, Affine)
    assert edit.c is not None
    a, b, c = (np.asarray(tensor.floats(), dtype=np.float64) for tensor in (edit.a, edit.b, edit.c))
    np.testing.assert_allclose(X + (X @ a + c) @ b, eraser(X), rtol=1e-4, atol=1e-4)
    [one, two] = eraser.hooks(["resid_post.1", "resid_post.2"], positions=[3])
    assert (one.site, two.site, one.where.positions) == ("resid_post.1", "resid_post.2", (3,))
    assert isinstance(difference_projection(X, z).edit, ProjectOut)


def test_too_few_rows_are_warned_of() -> None:
    X, z = _rows(n=40)
    with pytest.warns(UserWarning, match="40 rows of 12 coordinates"):
        assert isinstance(leace(X, z), Eraser)


@pytest.mark.parametrize(
    ("rows", "concept", "said"),
    [
        (np.ones((4, 2)), [0, 1, 0, 1], "nothing of the concept"),
        (np.eye(4), [1, 1, 1, 1], "same in every row"),
        (np.eye(4), [1, 0, 1], "rows are"),
        (np.full((2, 2), np.nan), [1, 0], "NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore:LEACE was fitted to:UserWarning")  # four rows are enough to be refused
def test_refusals(rows: Array, concept: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        leace(rows, concept)


def test_two_classes_only() -> None:
    X, z = _rows(classes=3)
    with pytest.raises(InvalidArgument, match="two classes"):
        inlp(X, z)
