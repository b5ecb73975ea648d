"""The control of a forgetting score: the same configurations, with latents that chance chose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from ..latents.statistics import Comparison
from .results import Clamp

__all__ = ["random_clamps"]


def random_clamps(clamps: Sequence[Clamp], frequencies: Comparison, seed: int, draw: int) -> list[Clamp]:
    """Each clamp with as many other latents, at random from those that fire on the first corpus; fewer where few are left.

    Those come first that pass the clamp's own threshold on the second corpus: others would cost what the chosen ones do
    not, and the gate would make the control easy to beat. One random order, drawn with (seed, draw), serves all clamps,
    so clamps of equal latents and threshold have equal controls.
    """
    fires = np.flatnonzero(frequencies.first.n_fired)
    order = np.random.default_rng([seed, draw]).permutation(fires)
    rates = frequencies.second.rate[order]
    return [
        replace(
            clamp, latents=_others(order[np.argsort(rates >= clamp.threshold, kind="stable")].tolist(), clamp.latents)
        )
        for clamp in clamps
    ]


def _others(order: Sequence[int], chosen: Sequence[int]) -> tuple[int, ...]:
    """As many as were chosen: the first of `order` that were not."""
    without = set(chosen)
    return tuple(islice((latent for latent in order if latent not in without), len(chosen)))
