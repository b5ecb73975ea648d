"""Enhanced separation: a loss that wants each latent to fire on one corpus alone; and how far latents are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from .labels import checked_labels

__all__ = ["Separation", "rate_ratios", "separation_auroc", "separation_loss"]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def separation_loss(hidden: Any, labels: Any, threshold: Any, temperature: float) -> Any:
    """Σ over latents of min(p_f, p_r) / max(p_f, p_r), with soft rates p = mean σ((h − θ) / (t·θ)) over each side's rows.

    hidden: pre-activations [row, d_sae]; labels [row] bool, True: forget; θ the threshold at which latents fire. Rates are
    soft and of pre-activations, so that a latent which does not fire has a gradient too.
    """
    torch: Any = import_module("torch")
    scale = temperature * threshold.clamp_min(1e-6)
    soft = ((hidden - threshold) / scale).sigmoid()
    forget, retain = soft[labels].mean(0), soft[~labels].mean(0)
    return (torch.minimum(forget, retain) / torch.maximum(forget, retain).clamp_min(1e-8)).sum()


class Separation:
    """strength · `separation_loss`, for BatchTopK and Matryoshka, whose running threshold is θ."""

    name = "separation"

    def __init__(self, labels: Any, strength: float, *, temperature: float = 0.25) -> None:
        if not math.isfinite(strength) or strength < 0 or not temperature > 0:
            raise InvalidArgument(f"strength is 0 or more and temperature above 0, got {strength} and {temperature}")
        self.labels, self.strength, self.temperature = checked_labels(labels), float(strength), float(temperature)

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        return {"strength": self.strength, "temperature": self.temperature}

    def __call__(self, sae: Any, output: Any) -> Any:
        """The term, a scalar tensor."""
        threshold = getattr(sae, "topk_threshold", None)
        if threshold is None:
            raise InvalidArgument("separation needs an SAE with a running threshold: batchtopk or matryoshka")
        theta = threshold.to(output.hidden_pre.dtype)
        return self.strength * separation_loss(output.hidden_pre, self.labels, theta, self.temperature)


def rate_ratios(fires: Mask, labels: Mask) -> Floats:
    """[latent]: log of its rate on forget rows over that on retain rows, half a firing added to each.

    fires: [row, latent]; labels: [row], True: forget.
    """
    forget, retain = fires[labels], fires[~labels]
    rates = [np.log((side.sum(axis=0) + 0.5) / (len(side) + 1.0)) for side in (forget, retain)]
    return rates[0] - rates[1]


def separation_auroc(fires: Mask, labels: Mask, *, seed: int = 0, permutations: int = 20) -> float:
    """How far latents tell the corpora apart: AUROC of |log rate ratio| against that under permuted rows; ½: not at all.

    Of latents that fire at all. Rows are permuted one by one, so of correlated rows it says more than there is.
    """
    alive = fires.any(axis=0)
    if not alive.any() or labels.all() or not labels.any():
        raise InvalidArgument("separation needs rows of both corpora and a latent that fires")
    found, rng = np.abs(rate_ratios(fires[:, alive], labels)), np.random.default_rng([seed, 3])
    null = np.concatenate([np.abs(rate_ratios(fires[:, alive], rng.permutation(labels))) for _ in range(permutations)])
    order = np.sort(null)
    below = np.searchsorted(order, found, side="left") + np.searchsorted(order, found, side="right")
    return float(below.mean() / (2 * len(null)))
