"""What each attention head adds to the residual stream: z · W_O, head by head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import Unsupported
from ...protos.model import ModelInfo

__all__ = ["check_head_outputs", "head_weights"]

_NAMES = ("layers.{layer}.self_attn.o_proj.weight", "h.{layer}.attn.c_proj.weight")
"""Of the checkpoint's output projection; the second (gpt2) is stored [in, out]."""


def head_weights(client: Client, info: ModelInfo, layer: int, *, model: str = "") -> NDArray[np.float64]:
    """W_O of a layer, [head, d_head, d_model]. Raises Unsupported where its checkpoint names it in no known way."""
    known = client.weight_names(model=model)
    for pattern in _NAMES:
        ending = pattern.format(layer=layer)
        name = next((name for name in known if name == ending or name.endswith(f".{ending}")), None)
        if name is not None:
            weight = np.asarray(client.weights(name, model=model, progress=False), dtype=np.float64)
            rows = weight if "c_proj" in ending else weight.T
            z = info.site("z")
            n_heads, width = (info.n_heads, info.d_head) if z is None else z.at(layer)
            return rows.reshape(n_heads, width, info.d_model)
    tried = ", ".join(pattern.format(layer=layer) for pattern in _NAMES)
    raise Unsupported(f"{info.id} has no output projection under a known name ({tried}); score whole attention outputs")


def check_head_outputs(heads: NDArray[np.float64], attn_out: NDArray[np.float64], layer: int) -> None:
    """Raise Unsupported unless the heads, [pos, head, d_model], sum to attn_out up to one bias for all positions.

    They do not where a norm follows the projection (gemma2, gemma3): then no head's share is its own.
    """
    rest = attn_out - heads.sum(axis=1)
    error = np.abs(rest - rest.mean(axis=0)).max() / max(float(np.abs(attn_out).max()), 1e-30)
    if error > 1e-2:  # bfloat16 rounds attn_out to 4e-3
        raise Unsupported(
            f"layer {layer}: the heads' z · W_O do not sum to attn_out (off by {error:.1e} of the largest), so a norm follows "
            "the projection and heads have no outputs of their own; use whole attention outputs, or path_patching"
        )
