"""The matrices that write into the residual stream, as the checkpoint has them: what a direction is taken out of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.variants.delta import Delta
from ..variants.weight_numbers import weight_numbers

__all__ = ["WRITERS", "WRITER_SITES", "Writer", "behind_writers", "left_out", "post_norms", "writer"]

Floats = NDArray[np.float64]
Kind = Literal["w_o", "w_down"]
WRITERS: tuple[Kind, ...] = ("w_o", "w_down")
WRITER_SITES: dict[Kind, str] = {"w_o": "attn_out", "w_down": "mlp_out"}
"""What each gives, on families without norms behind them."""
_POST = ("post_feedforward_layernorm.weight", "post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """One matrix: y = x·Wᵀ + b."""

    name: str
    """w_o.3, w_down.3."""
    weight: Floats
    """W [d_out, d_in]."""
    bias: Floats | None
    """[d_out]."""


def writer(client: Client, kind: Kind, layer: int, *, model: str = "") -> Writer:
    """A writer's numbers. Raises Unsupported for a model that has none as one plain matrix (mixtures)."""
    info = client.describe(model)
    name = f"{kind}.{layer}"
    found = weight_numbers(client, info, name, model=model)
    bias = None if found.bias is None else np.asarray(found.bias, dtype=np.float64)
    return Writer(name, np.asarray(found.matrix, dtype=np.float64).T, bias)


def post_norms(client: Client, *, model: str = "") -> bool:
    """Whether a norm stands between the writers and the stream (Gemma 2 and 3, OLMo 2): changes of weights are then none of the stream."""
    return any(name.endswith(_POST) for name in client.weight_names(model=model))


def behind_writers(client: Client, *, model: str = "") -> str:
    """What stands between w_o and w_down and the stream, or empty: then changes of these weights are not, or not all, the stream's."""
    info = client.describe(model)
    if post_norms(client, model=model):
        return "norms behind its writers"
    for kind, name in WRITER_SITES.items():
        site = info.site(name)
        if site is None or "low_rank" not in site.edits:
            return f"more than {kind} in {name} (a factor, experts, or another mixer beside attention)"
    return ""


def left_out(one: Writer, basis: Floats) -> Delta:
    """ΔW = −Q Qᵀ W and −Q Qᵀ b: the writer without what it writes along the rows of `basis` [r, d_out], orthonormal."""
    bias = None if one.bias is None else -(one.bias @ basis.T) @ basis
    return Delta(one.weight.T @ basis.T, -basis, bias)
