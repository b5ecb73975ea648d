"""The forward pass, from token ids to logits. Every value that has a name is offered to the tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...protos.sites import Site
from ...protos.tensors import Array
from .attention import Attention, softcap
from .linear import Linear, Norm
from .mlp import Mlp
from .tap import Tap, untouched

__all__ = ["Layer", "ReferenceModel"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layer:
    """Attention, then the MLP; each reads the stream through a norm and adds to it, some through a norm again."""

    attn_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp
    attn_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReferenceModel:
    """A whole transformer. Arrays are of one dtype, float32 or float64, and so is every value it computes."""

    architecture: str
    """`model_type` of the checkpoint's config."""
    embedding: Array
    """[vocab, d_model]."""
    layers: tuple[Layer, ...]
    final_norm: Norm
    unembedding: Linear
    """The same numbers as the embedding, in families that tie the two."""
    positions: Array | None = None
    """[pos, d_model], learned; None where attention rotates instead."""
    embed_scale: float = 1.0
    logit_cap: float | None = None

    def forward(self, token_ids: Sequence[int], tap: Tap = untouched) -> Array:
        """Logits [pos, vocab] of one sequence that starts at position 0."""
        x = self.embedding[np.asarray(token_ids)] * self.embed_scale
        if self.positions is not None:
            x = x + self.positions[: len(x)]
        x = tap(Site("embed"), x)
        for i, layer in enumerate(self.layers):
            x = tap(Site("resid_pre", i), x)
            out, read = layer.attention(tap(Site("attn_in", i), layer.attn_norm(tap(Site("attn_resid", i), x))), i, tap)
            if layer.attn_post_norm is not None:
                out, read = layer.attn_post_norm(out), None
            x = tap(Site("resid_mid", i), x + tap(Site("attn_out", i), out, read))
            out, read = layer.mlp(tap(Site("mlp_in", i), layer.mlp_norm(tap(Site("mlp_resid", i), x))), i, tap)
            if layer.mlp_post_norm is not None:
                out, read = layer.mlp_post_norm(out), None
            x = tap(Site("resid_post", i), x + tap(Site("mlp_out", i), out, read))
        x = tap(Site("final_norm"), self.final_norm(x))
        return tap(Site("logits"), softcap(self.unembedding(x), self.logit_cap))
