"""Thresholds of a trained JumpReLU SAE set anew: for an L0 that others have too, and capped by what retain rows allow."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from ..model.loaded import LoadedSae, load, require_trained

__all__ = ["retain_caps", "with_thresholds"]

Floats = NDArray[np.float64]
_HALVINGS = 40


def retain_caps(pre: NDArray[Any], max_rate: float) -> Floats:
    """[latent]: the least threshold at which it fires on at most `max_rate` of the rows; pre-activations [row, latent]."""
    if not 0 < max_rate <= 1 or not len(pre):
        raise InvalidArgument(f"max_rate is a share above 0 of one row or more, got {max_rate} of {len(pre)} rows")
    allowed = int(max_rate * len(pre))
    if allowed >= len(pre):
        none: Floats = np.zeros(int(pre.shape[1]), dtype=np.float64)
        return none
    ordered: Floats = np.sort(pre.astype(np.float64), axis=0)
    caps: Floats = np.clip(ordered[len(pre) - 1 - allowed], 0.0, None)
    return caps


def with_thresholds(
    folder: str | Path,
    out: str | Path,
    rows: NDArray[Any],
    l0: float,
    *,
    retain: NDArray[Any] | None = None,
    max_rate: float | None = None,
) -> LoadedSae:
    """A copy of a trained SAE whose thresholds give `l0` latents a row on `rows` [row, d_in]: all times one factor.

    With `retain` rows and `max_rate` each latent's threshold is besides at least what keeps its rate there: adaptive
    thresholds; then the others make up for it, as far as they can. run.json is copied along, since that says it was trained.
    Raises InvalidArgument where the SAE has no thresholds, FailedPrecondition for one that was never trained, or where no
    factor gives that L0.
    """
    sae, out = load(folder), Path(out)
    require_trained(sae)
    if sae.architecture != "jumprelu":
        raise InvalidArgument(
            f"{folder} is a {sae.architecture} SAE, which has no thresholds; batchtopk ends as jumprelu"
        )
    if (retain is None) != (max_rate is None):
        raise InvalidArgument("adaptive thresholds take retain rows and max_rate together")
    torch: Any = import_module("torch")
    own = sae.sae.threshold.detach().double().numpy().copy()
    with torch.no_grad():
        sae.sae.threshold.data = torch.zeros_like(sae.sae.threshold)
    pre = sae.encode(rows)
    caps = np.zeros(len(own)) if retain is None or max_rate is None else retain_caps(sae.encode(retain), max_rate)
    low, high = 0.0, 1.0
    while _l0(pre, own, caps, high) > l0 and high < 1e6:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _l0(pre, own, caps, middle) > l0 else (low, middle)
    reached = _l0(pre, own, caps, high)
    if abs(reached - l0) > 0.05 * l0:
        raise FailedPrecondition(
            f"no factor of the thresholds gives L0 {l0:g}; the nearest is {reached:.2f}: ask for less"
        )
    thresholds = np.maximum(own * high, caps).astype(np.float32)
    with torch.no_grad():
        sae.sae.threshold.data = torch.from_numpy(thresholds)
    out.mkdir(parents=True, exist_ok=True)
    sae.sae.save_model(out)
    if (Path(folder) / "run.json").is_file():
        shutil.copy(Path(folder) / "run.json", out / "run.json")
    return load(out)


def _l0(pre: NDArray[Any], own: Floats, caps: Floats, factor: float) -> float:
    return float((pre > np.maximum(own * factor, caps).astype(pre.dtype)).sum() / len(pre))
