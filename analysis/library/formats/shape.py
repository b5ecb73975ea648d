"""What a format needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from ....protos.model import ModelInfo

__all__ = ["Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, for formats that list every node, or that name units without saying how many there are."""

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int = 0
    parallel: bool = False
    """Attention and MLP of a layer read the same stream."""

    @classmethod
    def of(cls, info: ModelInfo) -> Shape:
        """Of a served model; a parallel one has no stream between attention and MLP, so it offers no mlp_resid."""
        return cls(info.n_layers, info.n_heads, info.d_model, info.d_mlp, info.site("mlp_resid") is None)
