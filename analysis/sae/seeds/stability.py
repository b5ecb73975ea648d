"""Whether SAEs that differ in their seed alone find the same latents: pairwise mean max cosine (PWMCC)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from ..model.loaded import load, require_trained
from .resampling import Interval, Method, interval, mann_whitney, pair_values, permutation

__all__ = [
    "Comparison",
    "Stability",
    "best_matches",
    "compare",
    "decoders",
    "one_to_one",
    "permutation_test",
    "pwmcc",
    "stability",
]

Floats = NDArray[np.float32]
Dictionary = NDArray[Any]
"""[d_sae, d_in]: the decoder direction of a latent a row, of any length but 0."""

_BLOCK_BYTES = 64 << 20
"""Of cosines that are held at once, so that a large d_sae fits: 65,536² of them would be 17 GB."""
_MOST_ASSIGNED = 8192
"""Latents of a one-to-one matching, which needs all cosines at once in float64 and cubic time."""
THRESHOLD = 0.7
"""|cos| from which on two latents count as the same (Paulo and Belrose 2025, arXiv 2501.16615)."""


@dataclass(frozen=True, slots=True, eq=False)
class Stability:
    """How alike the dictionaries of several seeds are."""

    names: tuple[str, ...]
    """One a seed."""
    pairs: NDArray[np.float64]
    """[seed, seed]: PWMCC of two dictionaries; NaN on the diagonal."""
    best: tuple[Floats, ...]
    """A seed: [seed, latent], the largest |cos| of each of its latents in every other dictionary; NaN in its own row."""
    assigned: NDArray[np.float64] | None = None
    """[seed, seed]: mean |cos| of a one-to-one matching, where that was asked for."""

    @property
    def mean(self) -> float:
        """PWMCC: the mean over all pairs of seeds."""
        return float(pair_values(self.pairs).mean())

    @property
    def assigned_mean(self) -> float | None:
        """The same of the one-to-one matching; never above PWMCC for dictionaries of one size."""
        return None if self.assigned is None else float(pair_values(self.assigned).mean())

    def interval(
        self, method: Method = "seeds", *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
    ) -> Interval:
        """PWMCC with an interval; `resampling.Method` says which there are and how wide they ought to be."""
        return interval(self.pairs, method, confidence=confidence, resamples=resamples, seed=seed)

    def latent_scores(self, name: str) -> Floats:
        """[latent] of one seed: the largest |cos| in each other dictionary, averaged over these."""
        if name not in self.names:
            raise InvalidArgument(f"there is no dictionary {name!r}; there are: {', '.join(self.names)}")
        return np.nanmean(self.best[self.names.index(name)], axis=0)

    def matched(self, threshold: float = THRESHOLD) -> float:
        """Share of latents with a match of |cos| ≥ `threshold` in another seed, averaged over ordered pairs of seeds."""
        _require_share(threshold)
        others = [
            [float((row >= threshold).mean()) for row in np.delete(best, i, axis=0)] for i, best in enumerate(self.best)
        ]
        return float(np.mean(others))

    def shared(self, threshold: float = THRESHOLD) -> float:
        """Share of latents with such a match in *every* other seed, averaged over seeds; it falls as seeds are added."""
        _require_share(threshold)
        found = [
            (np.delete(best, i, axis=0) >= threshold).all(axis=0).mean(dtype=np.float64)
            for i, best in enumerate(self.best)
        ]
        return float(np.mean(found))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Trained dictionaries beside random ones (or any other control)."""

    trained: Interval
    control: Interval
    p: float
    """One-sided, of the Mann–Whitney U test over pairs, which it takes as independent (they are not)."""

    @property
    def difference(self) -> float:
        """Trained less control."""
        return self.trained.mean - self.control.mean

    @property
    def ratio(self) -> float:
        """Trained over control; with a random control near .3, a ratio of 1.01 is next to nothing."""
        return self.trained.mean / self.control.mean

    @property
    def lcb(self) -> float:
        """A conservative lower bound of the difference: the trained interval's low end less the control's high end."""
        return self.trained.low - self.control.high


def stability(
    dictionaries: Mapping[str, Dictionary],
    *,
    alive: Mapping[str, NDArray[np.bool_]] | None = None,
    matching: bool = False,
    progress: bool = True,
) -> Stability:
    """PWMCC of every pair of dictionaries, [d_sae, d_in] by name, a seed each.

    `alive`: masks [d_sae] by the same names; the other latents are left out. Without it dead ones count, and pull
    towards what random directions give. `matching`: match one to one (Hungarian) as well.
    Two things make the figure flatter than it means: SAEs that started from the same weights, which cannot be seen
    here, and the same SAE twice, which is refused.
    Raises InvalidArgument for fewer than two dictionaries, two that are the same, or directions without a length.
    """
    if len(dictionaries) < 2:
        raise InvalidArgument(f"stability compares two dictionaries or more, got {len(dictionaries)}; train more seeds")
    if alive is not None and set(alive) != set(dictionaries):
        raise InvalidArgument(f"alive has masks for {sorted(alive)}, the dictionaries are {sorted(dictionaries)}")
    names = tuple(dictionaries)
    units = [_unit(_living(dictionaries[name], None if alive is None else alive[name], name), name) for name in names]
    _require_different(names, units)
    n = len(names)
    pairs, assigned = np.full((n, n), np.nan), np.full((n, n), np.nan) if matching else None
    best = [np.full((n, len(unit)), np.nan, dtype=np.float32) for unit in units]
    with progress_bar("comparing dictionaries", "plans", show=progress) as move:
        for done, (i, j) in enumerate(itertools.combinations(range(n), 2), start=1):
            best[i][j], best[j][i] = _best(units[i], units[j])
            pairs[i, j] = pairs[j, i] = _half_sum(best[i][j], best[j][i])
            if assigned is not None:
                assigned[i, j] = assigned[j, i] = float(_assigned(units[i], units[j]).mean(dtype=np.float64))
            move(done, n * (n - 1) // 2)
    return Stability(names, pairs, tuple(best), assigned)


def compare(
    trained: Stability, control: Stability, method: Method = "seeds", *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Trained dictionaries against a control's, usually `controls.random_dictionaries` of the same shape."""
    one, two = (found.interval(method, resamples=resamples, seed=seed) for found in (trained, control))
    return Comparison(one, two, mann_whitney(pair_values(trained.pairs), pair_values(control.pairs)))


def permutation_test(
    trained: Mapping[str, Dictionary],
    control: Mapping[str, Dictionary],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    progress: bool = True,
) -> float:
    """One-sided p that the trained dictionaries are more alike than the control's, which holds where Mann–Whitney's is
    too small: labels are permuted over whole dictionaries. It compares across the two kinds, at twice the cost and more.
    """
    both = {**{f"trained {name}": rows for name, rows in trained.items()}, **control}
    return permutation(stability(both, progress=progress).pairs, len(trained), resamples=resamples, seed=seed)


def pwmcc(first: Dictionary, second: Dictionary) -> float:
    """½ [mean_i max_j |cos| + mean_j max_i |cos|] of two dictionaries [d_sae, d_in]; 1 for the same latents in any order."""
    return _half_sum(*best_matches(first, second))


def best_matches(first: Dictionary, second: Dictionary) -> tuple[Floats, Floats]:
    """The largest |cos| of each latent of the first in the second, [d_sae of the first], and the other way round."""
    return _best(_unit(first, "the first dictionary"), _unit(second, "the second dictionary"))


def one_to_one(first: Dictionary, second: Dictionary) -> Floats:
    """[latent of the smaller dictionary]: |cos| under the one-to-one matching with the largest sum (Hungarian).

    Raises InvalidArgument beyond 8,192 latents, which would take too much memory and time.
    """
    return _assigned(_unit(first, "the first dictionary"), _unit(second, "the second dictionary"))


def decoders(folders: Mapping[str, str | Path], *, allow_untrained: bool = False) -> dict[str, Floats]:
    """The decoders of SAEs on the disk by name. Raises FailedPrecondition for one that was never trained."""
    found: dict[str, Floats] = {}
    for name, folder in folders.items():
        sae = load(folder)
        if not allow_untrained:
            require_trained(sae)
        found[name] = sae.w_dec
    return found


def _best(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    _require_width(first, second)
    of_first, of_second = np.empty(len(first), np.float32), np.zeros(len(second), np.float32)
    rows = max(1, _BLOCK_BYTES // (4 * len(second)))
    for start in range(0, len(first), rows):
        block = np.abs(first[start : start + rows] @ second.T)
        of_first[start : start + rows] = block.max(axis=1)
        np.maximum(of_second, block.max(axis=0), out=of_second)
    return np.minimum(of_first, 1.0), np.minimum(of_second, 1.0)


def _half_sum(one: Floats, two: Floats) -> float:
    return float(0.5 * (one.mean(dtype=np.float64) + two.mean(dtype=np.float64)))


def _assigned(first: Floats, second: Floats) -> Floats:
    _require_width(first, second)
    if max(len(first), len(second)) > _MOST_ASSIGNED:
        raise InvalidArgument(
            f"a one-to-one matching takes up to {_MOST_ASSIGNED} latents, got {len(first)} and {len(second)}; leave it "
            "out, or take the alive ones"
        )
    cosines = np.minimum(np.abs(first @ second.T), 1.0)
    chosen = import_module("scipy.optimize").linear_sum_assignment(cosines, maximize=True)
    return cosines[chosen]


def _unit(dictionary: Dictionary, name: str) -> Floats:
    """Rows of length 1, in float32."""
    rows = np.asarray(dictionary)
    if rows.ndim != 2 or not rows.size:
        raise InvalidArgument(f"{name}: a dictionary is an array [d_sae, d_in], got shape {list(rows.shape)}")
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        raise InvalidArgument(f"{name} holds NaN or infinity; an SAE that diverged has no stability")
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        none = np.flatnonzero(lengths == 0)
        raise InvalidArgument(
            f"{name}: {len(none)} latents have a direction of length 0 (the first: {none[:5].tolist()}), so no cosine; "
            "leave them out with alive"
        )
    return (rows / lengths[:, None]).astype(np.float32)


def _living(dictionary: Dictionary, alive: NDArray[np.bool_] | None, name: str) -> Dictionary:
    if alive is None:
        return dictionary
    mask = np.asarray(alive)
    if mask.dtype != np.bool_ or mask.shape != (len(dictionary),) or not mask.any():
        raise InvalidArgument(
            f"{name}: alive is a mask of {len(dictionary)} booleans, at least one of them true; got {mask.dtype} of "
            f"shape {list(mask.shape)}"
        )
    return dictionary[mask]


def _require_different(names: tuple[str, ...], units: list[Floats]) -> None:
    seen: dict[bytes, str] = {}
    for name, unit in zip(names, units, strict=True):
        digest = hashlib.sha256(unit.tobytes()).digest()
        if digest in seen:
            raise InvalidArgument(
                f"{seen[digest]} and {name} hold the same dictionary, so their likeness says nothing; give SAEs that "
                "were trained from different seeds"
            )
        seen[digest] = name


def _require_width(first: Floats, second: Floats) -> None:
    if first.shape[1] != second.shape[1]:
        raise InvalidArgument(
            f"dictionaries of width {first.shape[1]} and {second.shape[1]} cannot be compared; take SAEs of one site"
        )


def _require_share(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise InvalidArgument(f"threshold is an |cos| above 0 and up to 1, got {threshold}")
