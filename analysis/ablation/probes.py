"""Linear ways to read a binary concept off rows: difference of means, logistic regression, principal components."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition, InvalidArgument

__all__ = [
    "Labels",
    "Probe",
    "Rows",
    "auroc",
    "cross_validated",
    "difference_of_means",
    "effect_sizes",
    "fit_probe",
    "principal_components",
    "shuffled_accuracy",
]

Rows = NDArray[np.float64]
"""[example, width]."""
Labels = NDArray[np.int64]
"""[example], 0 or 1."""

MAX_ITERATIONS = 1000
FOLDS = 5
NO_VARIANCE = 1e-6
"""Share of the largest deviation below which a direction holds rounding of float32 alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Says 1 where row · direction + bias > 0; the direction is in the rows' own units."""

    direction: NDArray[np.float64]
    """[width]."""
    bias: float

    def scores(self, rows: Rows) -> NDArray[np.float64]:
        """[example]: log-odds of label 1, for a logistic probe."""
        return rows @ self.direction + self.bias

    def accuracy(self, rows: Rows, labels: Labels) -> float:
        """Share of rows that it labels right."""
        return float(((self.scores(rows) > 0) == (labels == 1)).mean())


def difference_of_means(rows: Rows, labels: Labels) -> Probe:
    """The direction from the mean of label 0 to that of label 1, with its threshold halfway."""
    ones, zeros = rows[labels == 1].mean(axis=0), rows[labels == 0].mean(axis=0)
    direction = ones - zeros
    return Probe(direction, -float(direction @ (ones + zeros)) / 2)


def fit_probe(rows: Rows, labels: Labels, *, c: float = 1.0) -> Probe:
    """L2 logistic regression on standardised columns; `c` is the inverse strength of the penalty, as in scikit-learn."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = _sklearn("linear_model").LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: still the best found, and the held-out accuracy says how good
        model.fit((rows - mean) / scale, labels)
    direction = np.asarray(model.coef_[0], dtype=np.float64) / scale
    return Probe(direction, float(model.intercept_[0]) - float(direction @ mean))


def cross_validated(rows: Rows, labels: Labels, *, c: float = 1.0, seed: int = 0) -> float:
    """Mean accuracy of `fit_probe` over stratified folds (5, or fewer where a label has fewer rows)."""
    folds = min(FOLDS, *np.bincount(labels, minlength=2).tolist())
    if folds < 2:
        raise InvalidArgument("each label needs at least 2 examples to train on")
    split = _sklearn("model_selection").StratifiedKFold(folds, shuffle=True, random_state=seed)
    found = [
        fit_probe(rows[train], labels[train], c=c).accuracy(rows[test], labels[test])
        for train, test in split.split(rows, labels)
    ]
    return float(np.mean(found))


def shuffled_accuracy(
    rows: Rows, labels: Labels, train: NDArray[np.intp], test: NDArray[np.intp], *, n: int, c: float, seed: int
) -> float:
    """Held-out accuracy when the labels are shuffled first, mean over `n` shuffles: what a probe gets by chance."""
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(n):
        mixed = _shuffled(labels, train, rng)
        found.append(fit_probe(rows[train], mixed[train], c=c).accuracy(rows[test], mixed[test]))
    return float(np.mean(found))


def _shuffled(labels: Labels, train: NDArray[np.intp], rng: np.random.Generator) -> Labels:
    """A shuffle that leaves both labels among the training rows."""
    while True:
        mixed = rng.permutation(labels)
        if len(np.unique(mixed[train])) == 2:
            return mixed


def principal_components(rows: Rows, n: int) -> NDArray[np.float64]:
    """[component, width]: orthonormal, by falling variance; fewer than `n` where the rows vary in fewer directions."""
    _, spreads, components = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    return components[:n][spreads[:n] > NO_VARIANCE * spreads[0]]


def effect_sizes(rows: Rows, labels: Labels) -> NDArray[np.float64]:
    """[width]: difference of means over the pooled deviation, column by column (Cohen's d); 0 where nothing varies."""
    ones, zeros = rows[labels == 1], rows[labels == 0]
    freedom = max(len(rows) - 2, 1)
    pooled = np.sqrt((ones.var(axis=0) * len(ones) + zeros.var(axis=0) * len(zeros)) / freedom)
    gap = ones.mean(axis=0) - zeros.mean(axis=0)
    return np.divide(gap, pooled, out=np.zeros_like(gap), where=pooled > 0)


def auroc(scores: NDArray[np.float64], labels: Labels) -> float:
    """The chance that a row of label 1 scores above one of label 0, ties counted half (Mann-Whitney)."""
    ones, zeros = scores[labels == 1], scores[labels == 0]
    above = (ones[:, None] > zeros[None, :]).mean() + 0.5 * (ones[:, None] == zeros[None, :]).mean()
    return float(above)


def _sklearn(module: str) -> Any:
    """A module of scikit-learn, which only the probes need. Raises FailedPrecondition where it is not installed."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"probes need {error.name}, which is not installed; pip install 'probewire[analysis]'"
        ) from None
