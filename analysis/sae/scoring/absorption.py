"""Feature absorption on the first-letter task (Chanin et al. 2024; SAEBench): a latent that ought to fire for a letter is
silent on some words, because a latent of those words has taken the letter's direction into its own.

For each letter: a logistic probe on the model's activations gives the true direction p. The k latents that an L1 probe
weighs most feed a k-sparse probe; while its F1 rises by at least .03 with k, they are the letter's main latents (split
where there are several). Then, on held-out words whose letter the probe reads rightly, with each latent's projection
f_i · (d_i · p̂) for decoder direction d_i:

- full absorption: no main latent fires (< 1e-8), the latent that projects most has cos(d, p) of at least .025, and its
  projection is at least .4 of the activation's own, x · p̂;
- fraction: up to 3 other latents with cos of at least .1 and a positive projection, the absorbers, project a of it. 0 where
  a is below .4 of x · p̂ or the main latents project m ≥ x · p̂; 1 where m ≤ 0; else a' / (a' + m), a' = min(a, x · p̂ − m).
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from ...ablation.probes import Probe
from ..model.loaded import LoadedSae, require_trained
from .directions import directions
from .first_letter import FirstLetterRows
from .intervals import Estimate, mean_of_means

__all__ = [
    "Absorption",
    "LetterAbsorption",
    "WordAbsorption",
    "absorbed_fraction",
    "absorption",
    "is_absorbed",
    "split",
]

SILENT = 1e-8
FULL_COSINE = 0.025
FRACTION_COSINE = 0.1
LEAST_SHARE = 0.4
MOST_ABSORBERS = 3
F1_JUMP = 0.03
MOST_SPLIT = 10
LEAST_F1 = 0.6
"""Of the probe: letters that it cannot read are left out."""
LEAST_WORDS = 20
"""Of a letter, to be probed."""
LEAST_LETTERS = 10
"""Letters that the probes read, for a score."""
HELD_OUT = 0.3
L1 = 0.01
"""Weight of the L1 norm beside the mean loss, which is 1 / (L1 · n) as scikit-learn's C."""

Floats = NDArray[np.float64]
Origin = Literal["zero", "b_dec"]


@dataclass(frozen=True, slots=True)
class WordAbsorption:
    """One held-out word whose letter the probe reads."""

    word: str
    projection: float
    """x · p̂."""
    fraction: float
    full: bool
    top: int
    """The latent that projects most."""
    top_share: float
    """Its part of the projection."""
    main_fires: bool


@dataclass(frozen=True, slots=True)
class LetterAbsorption:
    """One letter."""

    letter: str
    f1_probe: float
    f1_sparse: tuple[float, ...]
    """Of the sparse probes, k = 1, 2, …, up to the first that does not count."""
    main: tuple[int, ...]
    """Its latents."""
    words: tuple[WordAbsorption, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Absorption:
    """Letters that the probes read, and those that they do not."""

    letters: Mapping[str, LetterAbsorption]
    left_out: Mapping[str, str]
    """Letter → why."""
    origin: Origin
    seed: int
    how: str

    @property
    def fraction(self) -> Estimate:
        """Mean over letters of the mean fraction; words resampled within letters."""
        return self._mean([[word.fraction for word in one.words] for one in self.letters.values()])

    @property
    def full(self) -> Estimate:
        """Mean over letters of the share of words that are fully absorbed."""
        return self._mean([[float(word.full) for word in one.words] for one in self.letters.values()])

    def to_json(self) -> dict[str, Any]:
        """SAEBench's `absorption_first_letter` names, letter by letter, with intervals."""
        fractions = [float(np.mean([word.fraction for word in one.words])) for one in self.letters.values()]
        rates = [float(np.mean([word.full for word in one.words])) for one in self.letters.values()]
        splits = [len(one.main) for one in self.letters.values()]
        details = [
            {
                "first_letter": one.letter,
                "mean_absorption_fraction": fraction,
                "full_absorption_rate": rate,
                "num_full_absorption": sum(word.full for word in one.words),
                "num_probe_true_positives": len(one.words),
                "num_split_features": len(one.main),
                "f1_probe": one.f1_probe,
                "f1_sparse": list(one.f1_sparse),
                "main_latents": list(one.main),
            }
            for one, fraction, rate in zip(self.letters.values(), fractions, rates, strict=True)
        ]
        return {
            "mean": {
                "mean_absorption_fraction_score": self.fraction.value,
                "mean_absorption_fraction_score_interval": self.fraction.to_json()["interval"],
                "mean_full_absorption_score": self.full.value,
                "mean_full_absorption_score_interval": self.full.to_json()["interval"],
                "mean_num_split_features": float(np.mean(splits)),
                "std_dev_absorption_fraction_score": _deviation(fractions),
                "std_dev_full_absorption_score": _deviation(rates),
                "std_dev_num_split_features": _deviation(splits),
            },
            "eval_result_details": details,
            "how": {
                "texts": self.how,
                "words": self.full.n,
                "letters_left_out": dict(self.left_out),
                "origin": self.origin,
                "seed": self.seed,
            },
        }

    def _mean(self, groups: Sequence[Sequence[float]]) -> Estimate:
        return mean_of_means([np.array(group) for group in groups], seed=self.seed)


def absorption(
    sae: LoadedSae,
    data: FirstLetterRows,
    *,
    held_out: float = HELD_OUT,
    least_words: int = LEAST_WORDS,
    least_letters: int = LEAST_LETTERS,
    origin: Origin = "zero",
    seed: int = 0,
    allow_untrained: bool = False,
) -> Absorption:
    """Score an SAE's absorption. `held_out`: share of each letter's words that nothing is fitted on, drawn with the seed.

    `origin`: activations are measured from zero, as SAEBench does, or from the SAE's b_dec, which its latents add to.
    Raises FailedPrecondition for an SAE that was never trained, and where the probes read fewer than `least_letters`
    letters in the model: absorption says nothing of a model that does not hold them.
    """
    if not allow_untrained:
        require_trained(sae)
    if not 0 < held_out < 1 or origin not in ("zero", "b_dec"):
        raise InvalidArgument(f'held_out is between 0 and 1, and origin "zero" or "b_dec"; got {held_out}, {origin!r}')
    letters = np.array(data.letters)
    counts = {letter: int((letters == letter).sum()) for letter in sorted(set(data.letters))}
    left_out = {letter: f"{n} words, fewer than {least_words}" for letter, n in counts.items() if n < least_words}
    train, test = split(letters, held_out, np.random.default_rng(seed))
    rows, latents = data.rows.astype(np.float64), sae.encode(data.rows).astype(np.float64)
    dirs = directions(sae)
    measured = rows if origin == "zero" else rows - sae.b_dec.astype(np.float64)
    found: dict[str, LetterAbsorption] = {}
    for letter in counts:
        if letter in left_out:
            continue
        labels = (letters == letter).astype(np.int64)
        probe = _balanced_probe(rows[train], labels[train])
        right = probe.scores(rows[test]) > 0
        f1 = _f1(right, labels[test])
        positives = test[right & (labels[test] == 1)]
        if f1 <= LEAST_F1 or not len(positives):
            left_out[letter] = f"the probe's F1 is {f1:.2f}, not above {LEAST_F1}"
            continue
        main, scores = _main_latents(latents, labels, train, test)
        unit = probe.direction / np.linalg.norm(probe.direction)
        projections, cosines = dirs @ unit, _cosines(dirs, unit)
        words = tuple(
            _word(data.words[int(i)], latents[i], float(measured[i] @ unit), projections, cosines, main)
            for i in positives
        )
        found[letter] = LetterAbsorption(letter, f1, scores, main, words)
    if len(found) < least_letters:
        raise FailedPrecondition(
            f"the probes read {len(found)} letters with an F1 above {LEAST_F1}, fewer than {least_letters}: absorption "
            f"needs a model that holds the letters there, or more words; left out: {', '.join(left_out)}"
        )
    return Absorption(found, left_out, origin, seed, data.how)


def is_absorbed(latents: Floats, projections: Floats, cosines: Floats, main: Sequence[int], projection: float) -> bool:
    """Full absorption of one word: `latents`, `projections` (of a unit of each) and `cosines` are [d_sae]."""
    if projection <= 0 or (latents[list(main)] >= SILENT).any():
        return False
    top = int(np.argmax(latents * projections))
    return bool(cosines[top] >= FULL_COSINE and latents[top] * projections[top] / projection >= LEAST_SHARE)


def absorbed_fraction(
    latents: Floats, projections: Floats, cosines: Floats, main: Sequence[int], projection: float
) -> float:
    """How much of a word's letter comes from absorbers, 0 … 1; arguments as of `is_absorbed`."""
    parts = latents * projections
    by_main = float(parts[list(main)].sum())
    others = np.ones(len(parts), dtype=bool)
    others[list(main)] = False
    absorbers = np.sort(parts[others & (cosines >= FRACTION_COSINE) & (parts > 0)])[::-1]
    absorbed = float(absorbers[:MOST_ABSORBERS].sum())
    if projection <= 0 or by_main >= projection or absorbed / projection < LEAST_SHARE:
        return 0.0
    if by_main <= 0:
        return 1.0
    absorbed = min(absorbed, projection - by_main)
    return absorbed / (absorbed + by_main)


def _word(
    word: str, latents: Floats, projection: float, projections: Floats, cosines: Floats, main: tuple[int, ...]
) -> WordAbsorption:
    top = int(np.argmax(latents * projections))
    return WordAbsorption(
        word,
        projection,
        absorbed_fraction(latents, projections, cosines, main, projection),
        is_absorbed(latents, projections, cosines, main, projection),
        top,
        float(latents[top] * projections[top] / projection) if projection > 0 else float("nan"),
        bool((latents[list(main)] >= SILENT).any()),
    )


def _main_latents(
    latents: Floats, labels: NDArray[np.int64], train: NDArray[np.intp], test: NDArray[np.intp]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The latents of a letter, as many as raise F1, and the F1 for each k that was tried."""
    order = _ranked(latents[train], labels[train])
    best, scores = -np.inf, list[float]()
    main: tuple[int, ...] = ()
    for k in range(1, min(MOST_SPLIT, len(order)) + 1):
        chosen = order[:k]
        model = _logistic(class_weight="balanced", max_iter=500)
        _quietly(model, latents[np.ix_(train, chosen)], labels[train])
        scores.append(_f1(model.decision_function(latents[np.ix_(test, chosen)]) > 0, labels[test]))
        if scores[-1] < best + F1_JUMP:
            break
        best, main = scores[-1], tuple(int(i) for i in chosen)
    return main, tuple(scores)


def _ranked(latents: Floats, labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Latents by their weight in an L1 probe, largest first, those above 0 alone (at least one)."""
    fires = np.flatnonzero(latents.any(axis=0))
    if not len(fires):
        return np.zeros(1, dtype=np.intp)
    options = {"solver": "liblinear", "C": 1 / (L1 * len(latents)), "class_weight": "balanced"}
    model = _logistic(**options, **_l1(), random_state=0, max_iter=500)
    _quietly(model, latents[:, fires], labels)
    weights = np.asarray(model.coef_[0])
    order = np.argsort(-weights, kind="stable")
    return fires[order[: max(1, int((weights > 0).sum()))]]


def _balanced_probe(rows: Floats, labels: NDArray[np.int64]) -> Probe:
    """L2 logistic regression on standardised columns, the rare label weighing as much as the other."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = _logistic(class_weight="balanced", max_iter=1000)
    _quietly(model, (rows - mean) / scale, labels)
    direction = np.asarray(model.coef_[0], dtype=np.float64) / scale
    return Probe(direction, float(model.intercept_[0]) - float(direction @ mean))


def split(
    letters: NDArray[Any], held_out: float, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices for training and held out: a share of each letter's words, at random."""
    test: list[NDArray[np.intp]] = []
    for letter in np.unique(letters):
        own = rng.permutation(np.flatnonzero(letters == letter))
        test.append(own[: round(len(own) * held_out)])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(letters)), chosen), chosen


def _cosines(rows: Floats, unit: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1)
    return np.divide(rows @ unit, norms, out=np.zeros(len(rows)), where=norms > 0)


def _f1(found: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    right = int((found & (labels == 1)).sum())
    return 2 * right / max(int(found.sum()) + int((labels == 1).sum()), 1)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _logistic(**options: Any) -> Any:
    return importlib.import_module("sklearn.linear_model").LogisticRegression(**options)


def _l1() -> dict[str, Any]:
    """How this scikit-learn spells the L1 norm: before 1.8, `l1_ratio` without `penalty` would quietly mean L2."""
    known = inspect.signature(importlib.import_module("sklearn.linear_model").LogisticRegression).parameters
    return {"penalty": "l1"} if "penalty" in known and known["penalty"].default == "l2" else {"l1_ratio": 1.0}


def _quietly(model: Any, rows: Floats, labels: NDArray[np.int64]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: still the best found, and the held-out F1 says how good
        model.fit(rows, labels)
