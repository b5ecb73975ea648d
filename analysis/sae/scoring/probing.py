"""Sparse probing (Gurnee et al. 2023; SAEBench): how few latents tell a concept.

Each class against the others, balanced, on the mean over a text's tokens. The k features with the largest |μ₊ − μ₋| on the
training texts feed scikit-learn's logistic regression (L2, C = 1), scored on held-out texts. Columns stay as they are:
standardised, a latent that fired once would weigh as much as one that tells the class. The same is done for the model's own
coordinates and for their principal components, and all coordinates at once give what there is to find.
"""

from __future__ import annotations

import importlib
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ...ablation.probes import MAX_ITERATIONS, Labels, Rows, principal_components
from ..model.loaded import LoadedSae, require_trained
from .intervals import Estimate, mean_of_means
from .probe_rows import ProbeRows

__all__ = ["KS", "Probing", "baseline_probing", "sae_probing", "top_features"]

KS = (1, 2, 5)
COMPONENTS = 100
"""Principal components to choose from."""

Correct = NDArray[np.bool_]
"""[held-out text]."""


@dataclass(frozen=True, slots=True, eq=False)
class Probing:
    """Which held-out texts each kind of probe labels right. Kinds: "llm" or "sae" for all features, "sae_top_5" …"""

    correct: Mapping[str, Mapping[tuple[str, str], Correct]]
    """Kind → (set, class) → texts."""
    features: Mapping[str, Mapping[tuple[str, str], tuple[int, ...]]]
    """Kind → (set, class) → the k features chosen."""
    seed: int
    how: tuple[str, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of probes."""
        return tuple(self.correct)

    def accuracy(self, kind: str, dataset: str | None = None) -> Estimate:
        """Mean over classes, of one set or of all; held-out texts resampled within each class."""
        if kind not in self.correct:
            raise InvalidArgument(f"no probe of kind {kind!r}; there are: {', '.join(self.kinds)}")
        groups = [found for (name, _), found in self.correct[kind].items() if dataset in (None, name)]
        if not groups:
            raise InvalidArgument(f"no set {dataset!r} was probed")
        return mean_of_means(groups, seed=self.seed)

    def merged(self, other: Probing) -> Probing:
        """Both kinds of probes, of the same texts."""
        return Probing({**self.correct, **other.correct}, {**self.features, **other.features}, self.seed, self.how)

    def to_json(self) -> dict[str, Any]:
        """SAEBench's `sparse_probing` names, with intervals, set by set and class by class."""
        names = {kind: f"{kind}_test_accuracy" for kind in self.kinds}
        details = [
            {"dataset_name": f"{dataset}: {label}"}
            | {names[kind]: float(self.correct[kind][dataset, label].mean()) for kind in self.kinds}
            for dataset, label in next(iter(self.correct.values()))
        ]
        found: dict[str, Any] = {side: {} for side in ("llm", "sae", "pca")}
        for kind, name in names.items():
            estimate = self.accuracy(kind)
            found[kind.split("_")[0]] |= {name: estimate.value, f"{name}_interval": estimate.to_json()["interval"]}
        return found | {
            "eval_result_details": details,
            "how": {"texts": list(self.how), "held_out_labels": self.accuracy(self.kinds[0]).n, "seed": self.seed},
        }


def baseline_probing(data: Sequence[ProbeRows], ks: Sequence[int] = KS, *, seed: int = 0) -> Probing:
    """What the model's own activations give: all of them, the best k coordinates, the best k principal components."""
    _checked(data, ks)
    kinds: dict[str, dict[tuple[str, str], Correct]] = {}
    chosen: dict[str, dict[tuple[str, str], tuple[int, ...]]] = {}
    for found in data:
        train, test = found.train.pooled(), found.test.pooled()
        components = principal_components(train, COMPONENTS)
        views = {"llm": (train, test), "pca": (train @ components.T, test @ components.T)}
        for kind, (rows, held_out) in views.items():
            _probe(found, kind, rows, held_out, ks, seed, kinds, chosen, dense=kind == "llm")
    return Probing(kinds, chosen, seed, tuple(found.how for found in data))


def sae_probing(
    sae: LoadedSae, data: Sequence[ProbeRows], ks: Sequence[int] = KS, *, seed: int = 0, allow_untrained: bool = False
) -> Probing:
    """What an SAE's latents give: all of them, and the best k. Raises FailedPrecondition for an untrained SAE."""
    if not allow_untrained:
        require_trained(sae)
    _checked(data, ks)
    kinds: dict[str, dict[tuple[str, str], Correct]] = {}
    chosen: dict[str, dict[tuple[str, str], tuple[int, ...]]] = {}
    for found in data:
        rows, held_out = found.train.pooled_latents(sae), found.test.pooled_latents(sae)
        _probe(found, "sae", rows, held_out, ks, seed, kinds, chosen, dense=True)
    return Probing(kinds, chosen, seed, tuple(found.how for found in data))


def top_features(rows: Rows, labels: Labels, k: int) -> NDArray[np.intp]:
    """The `k` columns with the largest |μ₊ − μ₋|, largest first."""
    gap = np.abs(rows[labels == 1].mean(axis=0) - rows[labels == 0].mean(axis=0))
    return np.argsort(-gap, kind="stable")[:k]


def set_seed(name: str, seed: int) -> int:
    """A seed for one set, which does not depend on which others are read beside it."""
    return zlib.crc32(f"{name} {seed}".encode())


def _probe(
    data: ProbeRows,
    kind: str,
    rows: Rows,
    held_out: Rows,
    ks: Iterable[int],
    seed: int,
    kinds: dict[str, dict[tuple[str, str], Correct]],
    chosen: dict[str, dict[tuple[str, str], tuple[int, ...]]],
    *,
    dense: bool,
) -> None:
    for index, label in enumerate(data.classes):
        own = set_seed(data.name, seed)
        train, labels = data.train.binary(index, own)
        test, wanted = data.test.binary(index, own)
        if dense:
            kinds.setdefault(kind, {})[data.name, label] = _correct(rows[train], labels, held_out[test], wanted)
        for k in ks:
            best = top_features(rows[train], labels, k)
            name = f"{kind}_top_{k}"
            chosen.setdefault(name, {})[data.name, label] = tuple(int(i) for i in best)
            kinds.setdefault(name, {})[data.name, label] = _correct(
                rows[np.ix_(train, best)], labels, held_out[np.ix_(test, best)], wanted
            )


def _correct(rows: Rows, labels: Labels, held_out: Rows, wanted: Labels) -> Correct:
    model: Any = importlib.import_module("sklearn.linear_model").LogisticRegression(max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: still the best found, and the held-out accuracy says how good
        model.fit(rows, labels)
    return np.asarray(model.decision_function(held_out) > 0) == (wanted == 1)


def _checked(data: Sequence[ProbeRows], ks: Sequence[int]) -> None:
    if not data or len({found.name for found in data}) != len(data):
        raise InvalidArgument("give one set or more, each once")
    if not ks or min(ks) < 1:
        raise InvalidArgument(f"ks are numbers of features, 1 or more; got {list(ks)}")
