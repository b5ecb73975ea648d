"""Where a latent fires: its strongest examples and a sample of all the others, kept for every latent in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..latents.stream import TextWindow

__all__ = ["BANDS", "Example", "ExampleStore"]

RADIUS = 14
"""Tokens of an example on either side of its peak."""
BANDS = ((0.75, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25))
"""Quantiles of a latent's activations (one a window: its largest) that sampled examples are taken from."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One window in which a latent fires."""

    window: int
    """Index among the windows seen."""
    peak: int
    """Position of its largest activation there."""
    value: float
    heat: NDArray[np.float32]
    """[2·RADIUS + 1]: activations around the peak; 0 where it does not fire, or there is no token."""
    quantile: float | None = None
    """Of a sampled one: the share of the sample that is not larger."""


class ExampleStore:
    """Bounded, whatever the corpus: per latent a heap of the `n_top` strongest windows and a reservoir of `n_sampled`.

    A window counts once a latent, by its largest activation. The reservoir is a uniform sample of all windows in
    which the latent fires (Vitter's algorithm R, seeded), so its quantiles estimate those of the activations.
    """

    def __init__(self, d_sae: int, *, n_top: int = 8, n_sampled: int = 24, seed: int = 0) -> None:
        if n_top < 1 or n_sampled < 0:
            raise InvalidArgument(f"n_top must be 1 or more and n_sampled 0 or more, got {n_top} and {n_sampled}")
        self._top, self._sampled = _Slots(d_sae, n_top), _Slots(d_sae, n_sampled)
        self._seen = np.zeros(d_sae, dtype=np.int64)
        self._rng = np.random.default_rng(seed)
        self.windows: list[NDArray[np.int32]] = []
        """Token ids of every window seen."""
        self.tokens: dict[int, str] = {}
        """Token id → text, of every token seen."""

    def add(self, window: TextWindow) -> None:
        """One more window."""
        index = len(self.windows)
        self.windows.append(np.array(window.token_ids, dtype=np.int32))
        self.tokens.update(zip(window.token_ids, window.tokens, strict=True))
        if not len(window.latent):
            return
        latents, peak, value, heat = _peaks(window)
        weakest = self._top.value[latents].argmin(axis=1)
        better = value > self._top.value[latents, weakest]
        self._top.put(latents, weakest, better, index, peak, value, heat)
        if self._sampled.n:
            self._seen[latents] += 1
            seen = self._seen[latents]
            drawn = self._rng.integers(0, seen)
            slot = np.where(seen <= self._sampled.n, seen - 1, drawn)
            self._sampled.put(latents, slot, slot < self._sampled.n, index, peak, value, heat)

    def top(self, latent: int) -> list[Example]:
        """Strongest first; of equals, the one seen first."""
        found = self._top.examples(latent)
        return sorted(found, key=lambda example: (-example.value, example.window))

    def strong(self, latent: int) -> float:
        """The median of the strongest: what the latent reaches where it is strong, unlike its maximum hardly moved by one
        massive activation. 0 where it never fires.
        """
        values = self._top.value[latent]
        return float(np.median(values[values > 0])) if values.any() else 0.0

    def sampled(self, latent: int, a_band: int = 2) -> list[Example]:
        """`a_band` examples from each of BANDS, strongest first, none of which is among the top."""
        every = sorted(self._sampled.examples(latent), key=lambda example: (example.value, example.window))
        shown = {example.window for example in self._top.examples(latent)}
        found: list[Example] = []
        for low, high in BANDS:
            start, stop = round(low * len(every)), round(high * len(every))
            free = [place for place in range(start, stop) if every[place].window not in shown]
            places = [free[int((i + 0.5) * len(free) / a_band)] for i in range(a_band)] if free else []
            for place in sorted(set(places), reverse=True):
                one = every[place]
                found.append(Example(one.window, one.peak, one.value, one.heat, (place + 1) / len(every)))
        return found


class _Slots:
    """`n` examples of every latent; an empty slot has the value 0."""

    def __init__(self, d_sae: int, n: int) -> None:
        self.n = n
        self.value = np.zeros((d_sae, n), dtype=np.float32)
        self.window = np.zeros((d_sae, n), dtype=np.int32)
        self.peak = np.zeros((d_sae, n), dtype=np.int32)
        self.heat = np.zeros((d_sae, n, 2 * RADIUS + 1), dtype=np.float32)

    def put(
        self,
        latents: NDArray[np.int64],
        slots: NDArray[np.int64],
        chosen: NDArray[np.bool_],
        window: int,
        peak: NDArray[np.int64],
        value: NDArray[np.float32],
        heat: NDArray[np.float32],
    ) -> None:
        at = latents[chosen], slots[chosen]
        self.value[at], self.window[at], self.peak[at], self.heat[at] = (
            value[chosen],
            window,
            peak[chosen],
            heat[chosen],
        )

    def examples(self, latent: int) -> list[Example]:
        return [
            Example(
                int(self.window[latent, slot]),
                int(self.peak[latent, slot]),
                float(self.value[latent, slot]),
                self.heat[latent, slot],
            )
            for slot in np.flatnonzero(self.value[latent] > 0).tolist()
        ]


def _peaks(
    window: TextWindow,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Every latent that fires in the window, where and how strongly it peaks (the first of equals), and its heat."""
    order = np.lexsort((window.position, -window.value, window.latent))
    latents, first, column = np.unique(window.latent[order], return_index=True, return_inverse=True)
    peak, value = window.position[order][first], window.value[order][first]
    dense = np.zeros((len(window.token_ids) + 2 * RADIUS, len(latents)), dtype=np.float32)
    dense[window.position[order] + RADIUS, column] = window.value[order]
    around = peak[:, None] + np.arange(2 * RADIUS + 1)
    return latents, peak, value, dense[around, np.arange(len(latents))[:, None]]
