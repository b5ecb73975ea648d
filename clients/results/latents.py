"""The latents of an SAE that were read at a site, sparse: of each row the most active ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument, NotFound
from ...protos.tensors import Array

__all__ = ["LatentRows"]


@dataclass(frozen=True, slots=True, repr=False)
class LatentRows:
    """Latents by row, the most active first. Arrays are read-only."""

    positions: tuple[int, ...]
    """Absolute token position of each row."""
    ids: NDArray[np.int32]
    """[pos, top_k]; −1 where fewer fire."""
    values: Array
    """[pos, top_k]; 0 where fewer fire."""
    counts: NDArray[np.int32]
    """[pos]: how many latents fire in all."""
    gradients_or_none: Array | None = None
    error_or_none: Array | None = None
    bias_or_none: Array | None = None

    @property
    def complete(self) -> bool:
        """Whether every latent that fires is here: no row has more than top_k."""
        return bool((self.counts <= self.ids.shape[1]).all())

    @property
    def gradients(self) -> Array:
        """[pos, top_k]: the gradient of the target by each latent listed. Raises NotFound when none was asked for."""
        return _given(self.gradients_or_none)

    @property
    def attributions(self) -> Array:
        """[pos, top_k]: value times gradient. With the two below they add up to row · gradient where `complete`."""
        return self.values * self.gradients

    @property
    def error_attribution(self) -> Array:
        """[pos]: what the SAE does not explain of the row, times its gradient: the error node."""
        return _given(self.error_or_none)

    @property
    def bias_attribution(self) -> Array:
        """[pos]: what the SAE decodes from no latent at all, times its gradient."""
        return _given(self.bias_or_none)

    def dense(self, d_sae: int) -> Array:
        """[pos, d_sae]. Raises InvalidArgument where latents were left out, as zeros would be wrong there."""
        if not self.complete:
            raise InvalidArgument(
                f"up to {int(self.counts.max())} latents fire in a row and {self.ids.shape[1]} of each were read; "
                "capture with a larger top_k"
            )
        if self.ids.size and d_sae <= int(self.ids.max()):
            raise InvalidArgument(f"d_sae {d_sae} is too small for latent {int(self.ids.max())}")
        out = np.zeros((len(self.positions), d_sae + 1), dtype=self.values.dtype)
        np.put_along_axis(out, np.where(self.ids < 0, d_sae, self.ids).astype(np.int64), self.values, axis=1)
        return out[:, :d_sae]

    def __repr__(self) -> str:
        n = len(self.positions)
        return f"LatentRows({n} rows, {self.counts.sum()} active latents, top {self.ids.shape[1]} read)"


def _given(array: Array | None) -> Array:
    if array is None:
        raise NotFound("no gradients were read: ask client.gradients(…, at=[capture(site, latents=…, top_k=…)])")
    return array
