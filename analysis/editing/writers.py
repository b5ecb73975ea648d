"""The matrices that write into the residual stream, as the checkpoint has them: what a direction is taken out of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import Unsupported
from ...protos.variants.delta import Delta

__all__ = ["WRITERS", "WRITER_SITES", "Writer", "left_out", "post_norms", "writer"]

Floats = NDArray[np.float64]
Kind = Literal["w_o", "w_down"]
WRITERS: tuple[Kind, ...] = ("w_o", "w_down")
WRITER_SITES: dict[Kind, str] = {"w_o": "attn_out", "w_down": "mlp_out"}
"""What each gives, on families without norms behind them."""
_ENDINGS: dict[Kind, tuple[tuple[str, bool], ...]] = {
    "w_o": (("layers.{}.self_attn.o_proj", False), ("h.{}.attn.c_proj", True)),
    "w_down": (("layers.{}.mlp.down_proj", False), ("h.{}.mlp.c_proj", True)),
}
"""Ends of names, and whether the file has [in, out] (Conv1D)."""
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
    """A writer's numbers. Raises Unsupported for a model whose checkpoint has none under a known name (mixtures, other families)."""
    names = client.weight_names(model=model)
    for ending, transposed in _ENDINGS[kind]:
        path = next((name for name in names if name.endswith(ending.format(layer) + ".weight")), None)
        if path is None:
            continue
        weight = np.asarray(client.weights(path, model=model, progress=False), dtype=np.float64)
        bias_path = path.removesuffix("weight") + "bias"
        bias = (
            np.asarray(client.weights(bias_path, model=model, progress=False), dtype=np.float64)
            if bias_path in names
            else None
        )
        return Writer(f"{kind}.{layer}", weight.T if transposed else weight, bias)
    raise Unsupported(
        f"{client.describe(model).architecture} has no {kind}.{layer} that is one plain matrix; edit {WRITER_SITES[kind]}.{layer} by hooks"
    )


def post_norms(client: Client, *, model: str = "") -> bool:
    """Whether a norm stands between the writers and the stream (Gemma 2 and 3, OLMo 2): changes of weights are then none of the stream."""
    return any(name.endswith(_POST) for name in client.weight_names(model=model))


def left_out(one: Writer, basis: Floats) -> Delta:
    """ΔW = −Q Qᵀ W and −Q Qᵀ b: the writer without what it writes along the rows of `basis` [r, d_out], orthonormal."""
    bias = None if one.bias is None else -(one.bias @ basis.T) @ basis
    return Delta(one.weight.T @ basis.T, -basis, bias)
