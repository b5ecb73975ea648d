"""How well an SAE rebuilds activations and how sparsely it does so, without a model: arrays and an SAE on the disk.

Explained variance is 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² over all rows and dimensions together, summed in float64 about a running
mean, so that neither the scale nor the offset of the activations moves it. (SAEBench 0.6.0's `explained_variance`
squares the second moment in the mean's place and averages it over the dimensions: it is neither.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..model.loaded import LoadedSae, require_trained

__all__ = ["MASSIVE", "ExplainedVariance", "Quality", "Scores", "score_rows"]

MASSIVE = 10.0
"""Rows whose norm is above this many times the median are massive activations."""
RESCALED = ("layer_norm", "constant_norm_rescale")
"""Normalisations row by row: latents alone do not decode."""
ROWS_AT_ONCE = 2048
SIMILARITIES_AT_ONCE = 1024

Floats = NDArray[np.float64]
Rows = NDArray[Any]
"""[row, d_in], of any float dtype."""


class ExplainedVariance:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖², part by part: the sums about the mean are merged as Chan et al. (1979) merge them."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.residual = 0.0
        """Σ‖x − x̂‖²."""
        self.deviation = 0.0
        """Σ‖x − x̄‖²."""
        self._mean: Any = 0.0

    def add(self, x: Rows, reconstruction: Rows) -> None:
        """[row, d_in] and what was made of them. Raises InvalidArgument when the shapes differ or hold no numbers."""
        if x.ndim != 2 or x.shape != reconstruction.shape:
            raise InvalidArgument(f"rows {list(x.shape)} and reconstructions {list(reconstruction.shape)} do not pair")
        if not len(x):
            return
        rows = x.astype(np.float64)
        residual = float(((rows - reconstruction.astype(np.float64)) ** 2).sum())
        if not np.isfinite(residual):
            raise InvalidArgument("activations or reconstructions are not finite; a score would mean nothing")
        mean = rows.mean(axis=0)
        deviation = float(((rows - mean) ** 2).sum())
        total = self.n_rows + len(rows)
        shift: Floats = mean - self._mean
        self.deviation += deviation + float(shift @ shift) * self.n_rows * len(rows) / total
        self._mean = self._mean + shift * (len(rows) / total)
        self.residual += residual
        self.n_rows = total

    @property
    def value(self) -> float:
        """Raises InvalidArgument where no two rows differ: there is no variance to explain."""
        if not self.deviation > 0:
            raise InvalidArgument(f"{self.n_rows} rows without variance: explained variance is not defined")
        return 1.0 - self.residual / self.deviation


@dataclass(frozen=True, slots=True)
class Quality:
    """How rows and their reconstructions compare. Means are over rows."""

    n_rows: int
    explained_variance: float
    mse: float
    """Σ over dimensions of (x − x̂)²."""
    cossim: float
    """Cosine of x and x̂."""
    l2_norm_in: float
    l2_norm_out: float
    l2_ratio: float
    """‖x̂‖ / ‖x‖."""
    relative_reconstruction_bias: float
    """mean ‖x̂‖² / mean x·x̂ (Rajamanoharan et al. 2024, equation 10): below 1 where the SAE shrinks."""
    l0: float
    """Latents that fire."""
    l1: float
    """Σ of latents."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What arrays say of an SAE."""

    everything: Quality
    """Every row."""
    usual: Quality
    """Without massive activations, which carry most of the variance and are easy to rebuild."""
    median_norm: float
    """Of the rows; above `MASSIVE` times this, a row is massive."""
    n_massive: int
    density: Floats
    """[d_sae]: share of the rows that are not massive at which a latent fires."""
    max_decoder_cosine: Floats
    """[d_sae]: the largest cosine of a latent's decoder direction with another's."""

    @property
    def alive(self) -> float:
        """Share of latents that fire on at least one row; more rows can only raise it."""
        return float((self.density > 0).mean())

    @property
    def dead(self) -> NDArray[np.intp]:
        """Latents that never fire on these rows."""
        return np.flatnonzero(self.density == 0)

    def frequent(self, above: float) -> float:
        """Share of latents that fire on more than this share of rows."""
        return float((self.density > above).mean())

    def to_json(self) -> dict[str, Any]:
        """SAEBench's `core` names, which speak of every row, and the same without massive activations."""
        return self._named(self.everything) | {
            "misc_metrics": {
                "frac_alive": self.alive,
                "freq_over_1_percent": self.frequent(0.01),
                "freq_over_10_percent": self.frequent(0.1),
                "average_max_decoder_cosine_sim": float(self.max_decoder_cosine.mean()),
            },
            "without_massive_activations": self._named(self.usual),
            "massive_activations": {
                "n": self.n_massive,
                "rule": f"norm above {MASSIVE:g} times the median norm",
                "median_norm": self.median_norm,
            },
        }

    @staticmethod
    def _named(found: Quality) -> dict[str, Any]:
        return {
            "reconstruction_quality": {
                "explained_variance": found.explained_variance,
                "mse": found.mse,
                "cossim": found.cossim,
            },
            "shrinkage": {
                "l2_norm_in": found.l2_norm_in,
                "l2_norm_out": found.l2_norm_out,
                "l2_ratio": found.l2_ratio,
                "relative_reconstruction_bias": found.relative_reconstruction_bias,
            },
            "sparsity": {"l0": found.l0, "l1": found.l1},
            "token_stats": {"total_tokens_eval_sparsity_variance": found.n_rows},
        }


def score_rows(
    sae: LoadedSae, rows: Rows | Iterable[Rows], *, median_norm: float | None = None, allow_untrained: bool = False
) -> Scores:
    """Score an SAE on activations: [row, d_in], or parts of them, read twice unless `median_norm` is known.

    Raises FailedPrecondition for an SAE that was never trained (unless `allow_untrained`, for controls), InvalidArgument
    for rows of another width, none, or numbers that are not finite.
    """
    if not allow_untrained:
        require_trained(sae)
    if isinstance(rows, Iterator) and median_norm is None:
        raise InvalidArgument("an iterator can be read once only; give a list of arrays, or median_norm with it")
    parts: Iterable[Rows] = [cast("Rows", rows)] if isinstance(rows, np.ndarray) else rows
    median = _median_norm(parts) if median_norm is None else median_norm
    usual, everything = _Sums(sae.d_sae), _Sums(sae.d_sae)
    rescales = sae.sae.cfg.normalize_activations in RESCALED
    for part in _pieces(parts):
        latents = sae.encode(part)
        made = sae.reconstruct(part) if rescales else sae.decode(latents)
        everything.add(part, latents, made)
        kept = np.linalg.norm(part.astype(np.float64), axis=1) <= MASSIVE * median
        usual.add(part[kept], latents[kept], made[kept])
    if not usual.n_rows:
        raise InvalidArgument("no rows to score; give activations that are not all massive")
    return Scores(
        everything.quality(),
        usual.quality(),
        median,
        everything.n_rows - usual.n_rows,
        usual.fired / usual.n_rows,
        _max_cosines(sae.w_dec),
    )


class _Sums:
    """Sums over rows, in float64."""

    def __init__(self, d_sae: int) -> None:
        self.variance = ExplainedVariance()
        self.fired = np.zeros(d_sae)
        self.sums: dict[str, float] = dict.fromkeys(("cos", "in", "out", "ratio", "out2", "dot", "l0", "l1"), 0.0)

    @property
    def n_rows(self) -> int:
        return self.variance.n_rows

    def add(self, x: Rows, latents: Rows, made: Rows) -> None:
        self.variance.add(x, made)
        x, made = x.astype(np.float64), made.astype(np.float64)
        norm_in, norm_out = np.linalg.norm(x, axis=1), np.linalg.norm(made, axis=1)
        dots = (x * made).sum(axis=1)
        found = {
            "cos": _divided(dots, norm_in * norm_out),
            "in": norm_in,
            "out": norm_out,
            "ratio": _divided(norm_out, norm_in),
            "out2": norm_out**2,
            "dot": dots,
            "l0": (latents != 0).sum(axis=1),
            "l1": latents.sum(axis=1, dtype=np.float64),
        }
        for name, values in found.items():
            self.sums[name] += float(values.sum())
        self.fired += (latents != 0).sum(axis=0)

    def quality(self) -> Quality:
        mean = {name: value / self.n_rows for name, value in self.sums.items()}
        return Quality(
            n_rows=self.n_rows,
            explained_variance=self.variance.value,
            mse=self.variance.residual / self.n_rows,
            cossim=mean["cos"],
            l2_norm_in=mean["in"],
            l2_norm_out=mean["out"],
            l2_ratio=mean["ratio"],
            relative_reconstruction_bias=mean["out2"] / mean["dot"] if mean["dot"] else float("nan"),
            l0=mean["l0"],
            l1=mean["l1"],
        )


def _pieces(parts: Iterable[Rows]) -> Iterator[Rows]:
    for part in parts:
        for start in range(0, len(part), ROWS_AT_ONCE):
            yield part[start : start + ROWS_AT_ONCE]


def _median_norm(parts: Iterable[Rows]) -> float:
    norms = [np.linalg.norm(part.astype(np.float64), axis=-1) for part in _pieces(parts)]
    if not norms:
        raise InvalidArgument("no rows to score; give at least two activations")
    return float(np.median(np.concatenate(norms)))


def _divided(above: Floats, below: Floats) -> Floats:
    """The quotient; 0 where a row is zero."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _max_cosines(w_dec: NDArray[np.float32]) -> Floats:
    norms = np.linalg.norm(w_dec, axis=1, keepdims=True)
    unit = w_dec / np.where(norms > 0, norms, 1.0)
    found = np.zeros(len(unit))
    for start in range(0, len(unit), SIMILARITIES_AT_ONCE):
        cosines = unit[start : start + SIMILARITIES_AT_ONCE] @ unit.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1.0
        found[start : start + len(cosines)] = cosines.max(axis=1)
    return found
