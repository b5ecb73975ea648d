"""A regulariser that draws a decoder towards a reference: MSE + λ (1 − mean_i max_j |cos(D_i, R_j)|)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..data.batches import data_hash

__all__ = ["Consistency", "consistency_loss"]

_BLOCK_BYTES = 64 << 20
"""Of cosines that are held at once."""


def consistency_loss(decoder: Any, reference: Any) -> Any:
    """1 − mean_i max_j |cos(D_i, R_j)| of torch tensors: D [d_sae, d_in], R [d_ref, d_in] with rows of length 1.

    The gradient goes to the decoder only. Which direction of the reference is nearest is found without it, block by
    block, so that the cosines of all pairs are never held at once; the gradient of a maximum is that of its largest
    element, so it is exact where that is unique.
    """
    torch: Any = import_module("torch")
    unit = decoder / decoder.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        rows = max(1, _BLOCK_BYTES // (reference.element_size() * len(reference)))
        nearest = torch.cat([(part @ reference.T).abs().argmax(dim=1) for part in unit.split(rows)])
    return 1 - (unit * reference[nearest]).sum(dim=-1).abs().mean()


class Consistency:
    """λ = `strength` times that loss, for `training.train(…, added_loss=…)` and `ArrayTrainer`.

    `reference`: [d_ref, d_in], the decoder of another SAE, held fixed. sae-lens's own loss is the squared error summed
    over d_in, not averaged, so a λ published for an averaged one is to be multiplied by d_in. λ = 0 changes nothing,
    to the bit.
    SAEs drawn towards one reference agree with one another through it: their PWMCC says how strong the pull was, not
    that their latents are there in the data. Compare explained variance, and give each SAE of a comparison a reference
    that the others do not share.
    Raises InvalidArgument for a strength below 0, or a reference without directions; for one of another width than the
    SAE's when it is first used.
    """

    name = "consistency_loss"

    def __init__(self, reference: NDArray[Any], strength: float) -> None:
        if not math.isfinite(strength) or strength < 0:
            raise InvalidArgument(f"strength is a finite number of 0 or more, got {strength}")
        rows = np.asarray(reference, dtype=np.float64)
        if rows.ndim != 2 or not rows.size:
            raise InvalidArgument(f"the reference is an array [d_ref, d_in], got shape {list(rows.shape)}")
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise InvalidArgument("the reference has directions that are zero or not finite; leave them out")
        self.strength = float(strength)
        self._unit = rows / lengths
        self._fixed: Any = None

    @property
    def note(self) -> Mapping[str, Any]:
        """For the manifest of a run."""
        return {"strength": self.strength, "reference_hash": data_hash(self._unit)}

    def __call__(self, sae: Any, output: Any) -> Any:
        """The term, a scalar tensor, from a training SAE and what its forward pass gave."""
        if sae.W_dec.shape[1] != self._unit.shape[1]:
            raise InvalidArgument(
                f"the reference is [d_ref, {self._unit.shape[1]}] and the SAE reads width {sae.W_dec.shape[1]}; take "
                "the decoder of an SAE of the same site"
            )
        if self.strength == 0:
            return output.loss.new_zeros(())
        if self._fixed is None or (self._fixed.dtype, self._fixed.device) != (sae.W_dec.dtype, sae.W_dec.device):
            self._fixed = import_module("torch").from_numpy(self._unit).to(sae.W_dec)
        return self.strength * consistency_loss(sae.W_dec, self._fixed)
