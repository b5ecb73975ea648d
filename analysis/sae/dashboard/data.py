"""What a dashboard page is drawn from: every number of it, as compact JSON data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..latents.statistics import LOW, LatentCounts
from .examples import RADIUS, Example, ExampleStore
from .tokens import TokenEffects

__all__ = ["BINS_PER_OCTAVE", "DashboardData", "Steered", "page_data"]

BINS_PER_OCTAVE = 4
"""Of the histograms on the page."""


@dataclass(frozen=True, slots=True)
class Steered:
    """What the model went on to write while a latent was added."""

    prompt: str
    strength: float
    """In units of the median of the latent's strongest examples; 0: untouched."""
    added: float
    """To the latent, at every token but the first."""
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class DashboardData:
    """Everything that was found out about an SAE's latents."""

    about: Mapping[str, Any]
    """Name → number or text: of the SAE, the model and the corpus."""
    notes: Sequence[str]
    """What was left out or could not be had, in sentences."""
    latents: NDArray[np.int64]
    """[latent]: ids of those on the page."""
    counts: LatentCounts
    """Of all latents."""
    examples: ExampleStore
    near: tuple[NDArray[np.int64], NDArray[np.float32]]
    """Nearest other latents of those on the page, and their cosines: [latent, k]."""
    effects: TokenEffects | None = None
    """Of those on the page; None where they could not be had."""
    effect_tokens: Mapping[int, str] = field(default_factory=dict[int, str])
    """Token id → text, of the tokens in `effects`."""
    steered: Mapping[int, Sequence[Steered]] = field(default_factory=dict[int, Sequence[Steered]])
    """Latent → generations."""


def page_data(data: DashboardData, title: str) -> dict[str, Any]:
    """As the page's script reads it: columns, token texts and windows by index, numbers of three or four digits."""
    words, windows = _Table[str](), _Table[int]()
    top = [_examples(data.examples.top(int(latent)), windows) for latent in data.latents]
    sampled = [_examples(data.examples.sampled(int(latent)), windows) for latent in data.latents]
    texts = data.examples.tokens
    return {
        "title": title,
        "about": dict(data.about),
        "notes": list(data.notes),
        "radius": RADIUS,
        "bins": {"low": LOW, "per_octave": BINS_PER_OCTAVE},
        **_columns(data),
        "histograms": [_histogram(data.counts.bins[:, int(latent)].sum(axis=0)) for latent in data.latents],
        "near": [_pairs(*row) for row in zip(*data.near, strict=True)],
        **_effects(data, words),
        "top": top,
        "sampled": sampled,
        "steered": {
            str(latent): [[s.prompt, s.strength, _short(s.added), s.text] for s in found]
            for latent, found in data.steered.items()
        },
        "windows": [[words.index(texts[int(i)]) for i in data.examples.windows[w]] for w in windows.items],
        "words": words.items,
    }


T = TypeVar("T")


class _Table(Generic[T]):
    """Distinct items in the order in which they were first asked for."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._index: dict[T, int] = {}

    def index(self, item: T) -> int:
        if item not in self._index:
            self._index[item] = len(self.items)
            self.items.append(item)
        return self._index[item]


def _columns(data: DashboardData) -> dict[str, list[float]]:
    counts, chosen = data.counts, data.latents
    return {
        "ids": chosen.tolist(),
        "fired": counts.n_fired[chosen].tolist(),
        "density": _shortened(counts.rate[chosen]),
        "max": _shortened(counts.peak[chosen]),
        "strong": _shortened(np.array([data.examples.strong(latent) for latent in chosen.tolist()])),
        "mean": _shortened(counts.mean[chosen]),
    }


def _histogram(bins: NDArray[np.int64]) -> list[int]:
    """[first bin that is not empty, counts up to the last that is not]."""
    full = np.flatnonzero(bins)
    return [int(full[0]), *bins[full[0] : full[-1] + 1].tolist()] if len(full) else []


def _effects(data: DashboardData, words: _Table[str]) -> dict[str, Any]:
    found = data.effects
    if found is None:
        return {"promoted": None, "suppressed": None}

    def rows(ids: NDArray[np.int64], values: NDArray[np.float32]) -> list[list[float]]:
        named = [[words.index(data.effect_tokens[token]) for token in row] for row in ids.tolist()]
        return [_pairs(row, by) for row, by in zip(named, values, strict=True)]

    return {
        "promoted": rows(found.promoted, found.promoted_by),
        "suppressed": rows(found.suppressed, found.suppressed_by),
    }


def _examples(examples: Iterable[Example], windows: _Table[int]) -> list[list[Any]]:
    """[window, peak, value, quantile or null, offset, activation, offset, activation, …] each; offsets from the peak."""
    found: list[list[Any]] = []
    for example in examples:
        (warm,) = np.nonzero(example.heat)
        quantile = None if example.quantile is None else round(example.quantile, 2)
        heat = _pairs((warm - RADIUS).tolist(), example.heat[warm])
        found.append([windows.index(example.window), example.peak, _short(example.value), quantile, *heat])
    return found


def _pairs(names: Sequence[int] | NDArray[np.int64], values: NDArray[np.float32]) -> list[float]:
    """[name, value, name, value, …]"""
    return [part for name, value in zip(names, values, strict=True) for part in (int(name), _short(value))]


def _shortened(values: NDArray[np.float64]) -> list[float]:
    return [_short(value, 4) for value in values]


def _short(value: Any, digits: int = 3) -> float:
    """So many digits are all that the page shows."""
    found = float(f"{float(value):.{digits}g}")
    return int(found) if found.is_integer() else found
