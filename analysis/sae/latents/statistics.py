"""What each latent does on a corpus, counted in one pass; and how it differs between two corpora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import InvalidArgument
from ....protos.saes import SaeInfo
from ..data.corpus import Texts
from .stream import CONTEXT, TextWindow, stream_latents

__all__ = ["Comparison", "LatentCounts", "RankedLatent", "bernoulli_kl", "compare", "count_latents", "magnitude_kl"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Measure = Literal["importance", "divergence", "rate", "magnitude"]
MEASURES: tuple[Measure, ...] = ("importance", "divergence", "rate", "magnitude")

LOW, HIGH = -10, 16
"""Magnitudes are binned by their logarithm to base 2 between these; the outermost bins also hold all beyond."""
BLOCKS = 20
"""Texts are dealt into so many blocks, which the bootstrap resamples: tokens of one text are not independent."""
SMOOTHING = 1.0
"""Laplace's: added to every count."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentCounts:
    """Firings and magnitudes of every latent on one corpus. Counts of parts of a corpus add up: `merged`."""

    tokens: Counts
    """[block]: tokens read."""
    fired: Counts
    """[block, latent]: tokens at which it fired (f > 0)."""
    bins: Counts
    """[block, latent, bin]: firings by magnitude; bin i begins at 2^(LOW + i / bins_per_octave)."""
    total: Floats
    """[latent]: sum of activations."""
    peak: Floats
    """[latent]: largest activation; 0 where it never fired."""
    bins_per_octave: int = 1

    @classmethod
    def empty(cls, d_sae: int, *, blocks: int = BLOCKS, bins_per_octave: int = 1) -> LatentCounts:
        """Nothing counted yet."""
        n_bins = (HIGH - LOW) * bins_per_octave
        zeros = np.zeros((blocks, d_sae), dtype=np.int64)
        bins = np.zeros((blocks, d_sae, n_bins), dtype=np.int64)
        tokens = np.zeros(blocks, dtype=np.int64)
        return cls(tokens, zeros, bins, np.zeros(d_sae), np.zeros(d_sae), bins_per_octave)

    def add(self, window: TextWindow) -> None:
        """Count one more window, in place."""
        block = window.text % len(self.tokens)
        self.tokens[block] += window.n_rows
        np.add.at(self.fired[block], window.latent, 1)
        np.add.at(self.bins[block], (window.latent, bin_of(window.value, self.bins_per_octave)), 1)
        np.add.at(self.total, window.latent, window.value.astype(np.float64))
        np.maximum.at(self.peak, window.latent, window.value.astype(np.float64))

    def merged(self, other: LatentCounts) -> LatentCounts:
        """Both together. Raises InvalidArgument where they count other latents, blocks or bins."""
        if self.bins.shape != other.bins.shape or self.bins_per_octave != other.bins_per_octave:
            raise InvalidArgument(f"counts [block, latent, bin] {self.bins.shape} and {other.bins.shape} do not add up")
        return LatentCounts(
            self.tokens + other.tokens,
            self.fired + other.fired,
            self.bins + other.bins,
            self.total + other.total,
            np.maximum(self.peak, other.peak),
            self.bins_per_octave,
        )

    @property
    def d_sae(self) -> int:
        """How many latents there are."""
        return self.fired.shape[1]

    @property
    def n_tokens(self) -> int:
        """Tokens read."""
        return int(self.tokens.sum())

    @property
    def n_fired(self) -> Counts:
        """[latent]: tokens at which it fired."""
        return self.fired.sum(axis=0)

    @property
    def rate(self) -> Floats:
        """[latent]: share of tokens at which it fires (its density)."""
        return self.n_fired / max(self.n_tokens, 1)

    @property
    def mean(self) -> Floats:
        """[latent]: mean activation where it fires; 0 where it never does."""
        return self.total / np.maximum(self.n_fired, 1)


def bin_of(values: NDArray[np.floating], bins_per_octave: int) -> NDArray[np.int64]:
    """[entry]: the bin of each activation (above 0)."""
    place = np.floor((np.log2(values.astype(np.float64)) - LOW) * bins_per_octave)
    return np.clip(place, 0, (HIGH - LOW) * bins_per_octave - 1).astype(np.int64)


def count_latents(
    client: Client,
    sae: SaeInfo,
    texts: Texts,
    *,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    blocks: int = BLOCKS,
    progress: bool = True,
) -> LatentCounts:
    """One pass over a corpus through the server; only active latents cross the wire.

    The first token of every window is left out (`stream_latents` says why and what a window is).
    """
    counts = LatentCounts.empty(sae.d_sae, blocks=blocks)
    for window in stream_latents(client, sae, texts, context=context, max_tokens=max_tokens, progress=progress):
        counts.add(window)
    return counts


def bernoulli_kl(fired_p: Counts, n_p: int | np.int64, fired_q: Counts, n_q: int | np.int64) -> Floats:
    """KL(Bernoulli(p) ‖ Bernoulli(q)) in nats, with p = (fired + α) / (n + 2α), α = 1 (Laplace)."""
    p = (fired_p + SMOOTHING) / (n_p + 2 * SMOOTHING)
    q = (fired_q + SMOOTHING) / (n_q + 2 * SMOOTHING)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def magnitude_kl(bins_p: Counts, bins_q: Counts) -> Floats:
    """KL of the magnitudes of firings over the last axis (bins), in nats; shares (count + α) / (n + α·bins), α = 1."""
    p, q = ((bins + SMOOTHING) / (bins + SMOOTHING).sum(axis=-1, keepdims=True) for bins in (bins_p, bins_q))
    return (p * np.log(p / q)).sum(axis=-1)


@dataclass(frozen=True, slots=True)
class RankedLatent:
    """One latent of a ranking."""

    latent: int
    score: float
    low: float
    high: float
    """Percentile interval of the bootstrap over blocks of texts."""
    rates: tuple[float, float]
    """Firing rate on the first corpus and on the second."""
    means: tuple[float, float]
    """Mean activation where it fires."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two corpora, latent by latent. All divergences are KL(first ‖ second) in nats, Laplace-smoothed.

    They are estimates from counts, so those of two samples of one corpus lie above 0 too: the more so, the rarer the
    latent. Compare two halves of a corpus to see how large that is.
    """

    first: LatentCounts
    second: LatentCounts
    names: tuple[str, str] = ("first", "second")

    @property
    def rate_divergence(self) -> Floats:
        """[latent]: KL of firing as a yes or no."""
        return self._scores("rate")

    @property
    def magnitude_divergence(self) -> Floats:
        """[latent]: KL of the binned magnitudes, one bin an octave, of the tokens at which it fires."""
        return self._scores("magnitude")

    @property
    def importance(self) -> Floats:
        """[latent]: rate_divergence + magnitude_divergence."""
        return self._scores("importance")

    @property
    def divergence(self) -> Floats:
        """[latent]: rate_divergence + p·magnitude_divergence, p the (smoothed) rate on the first corpus.

        By the chain rule, KL of the activation as a whole, "does not fire" being one more bin; unlike `importance`, a
        latent that hardly ever fires cannot come first by its few magnitudes.
        """
        return self._scores("divergence")

    def ranking(
        self,
        top: int = 20,
        *,
        by: Measure = "importance",
        replicates: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> list[RankedLatent]:
        """The `top` latents by a measure, largest first, with bootstrap intervals over blocks of texts.

        Blocks, not tokens, are drawn again: tokens of one text are dependent. Of intervals of the latents that came
        first, know that they were chosen for their scores. Raises InvalidArgument for an unknown measure.
        """
        scores = self._scores(by)
        order = np.lexsort((np.arange(len(scores)), -scores))[:top]
        low, high = self._interval(order, by, replicates, confidence, seed)
        rates, means = (self.first.rate, self.second.rate), (self.first.mean, self.second.mean)
        return [
            RankedLatent(
                int(latent),
                float(scores[latent]),
                float(low[place]),
                float(high[place]),
                (float(rates[0][latent]), float(rates[1][latent])),
                (float(means[0][latent]), float(means[1][latent])),
            )
            for place, latent in enumerate(order)
        ]

    def _scores(self, by: Measure) -> Floats:
        sides = [(side.n_fired, np.int64(side.n_tokens), side.bins.sum(axis=0)) for side in (self.first, self.second)]
        return _measure(by, *sides)

    def _interval(
        self, chosen: NDArray[np.intp], by: Measure, replicates: int, confidence: float, seed: int
    ) -> tuple[Floats, Floats]:
        if not 0 < confidence < 1 or replicates < 1:
            raise InvalidArgument(f"confidence lies between 0 and 1, replicates from 1; got {confidence}, {replicates}")
        rng = np.random.default_rng(seed)
        drawn = np.empty((replicates, len(chosen)))
        used = [np.flatnonzero(side.tokens) for side in (self.first, self.second)]
        for index in range(replicates):
            sides: list[tuple[Counts, np.int64, Counts]] = []
            for side, blocks in zip((self.first, self.second), used, strict=True):
                weight = np.bincount(rng.choice(blocks, size=len(blocks)), minlength=len(side.tokens))
                fired, bins = (np.tensordot(weight, part[:, chosen], axes=1) for part in (side.fired, side.bins))
                sides.append((fired, np.int64(weight @ side.tokens), bins))
            drawn[index] = _measure(by, *sides)
        edge = 50 * (1 - confidence)
        low, high = np.percentile(drawn, [edge, 100 - edge], axis=0)
        return low, high


def _measure(by: Measure, first: tuple[Counts, np.int64, Counts], second: tuple[Counts, np.int64, Counts]) -> Floats:
    """[latent]: from (firings, tokens, bins) of both corpora."""
    if by not in MEASURES:
        raise InvalidArgument(f"measure {by!r}; allowed: {', '.join(MEASURES)}")
    rate = bernoulli_kl(first[0], first[1], second[0], second[1])
    if by == "rate":
        return rate
    magnitude = magnitude_kl(first[2], second[2])
    if by == "magnitude":
        return magnitude
    if by == "importance":
        return rate + magnitude
    return rate + (first[0] + SMOOTHING) / (first[1] + 2 * SMOOTHING) * magnitude


def compare(first: LatentCounts, second: LatentCounts, names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Two corpora counted with one SAE. Raises InvalidArgument where they do not match or one is empty."""
    if first.d_sae != second.d_sae or first.bins_per_octave != second.bins_per_octave:
        raise InvalidArgument(
            f"counts of {first.d_sae} and {second.d_sae} latents cannot be compared; count both with one SAE"
        )
    for name, side in zip(names, (first, second), strict=True):
        if not side.n_tokens:
            raise InvalidArgument(f"nothing was counted of the {name} corpus; count its texts first")
    return Comparison(first, second, names)
