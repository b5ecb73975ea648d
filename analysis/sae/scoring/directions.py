"""What a unit of each latent adds to what an SAE rebuilds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..model.loaded import LoadedSae
from .scores import RESCALED

__all__ = ["directions"]


def directions(sae: LoadedSae) -> NDArray[np.float64]:
    """[d_sae, d_in]: decode(f + one of latent i) − decode(f).

    W_dec, or its unit rows where the SAE measures latents in the decoder's norm. Raises InvalidArgument for an SAE that
    rescales each row that it reads, where a latent adds something else to each.
    """
    config = sae.sae.cfg
    if config.normalize_activations in RESCALED:
        raise InvalidArgument(
            f"{sae.folder} rescales each row that it reads ({config.normalize_activations}), so its latents have no "
            "direction of their own; fold the scale in first (sae.fold_activation_norm_scaling_factor)"
        )
    rows = sae.w_dec.astype(np.float64)
    if not getattr(config, "rescale_acts_by_decoder_norm", False):
        return rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1.0)
