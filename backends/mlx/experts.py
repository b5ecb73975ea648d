"""Experts: as mlx-lm keeps them, and on a device whose `gather_mm` knows float32 alone, as MLX's CPU does."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import SwitchLinear

__all__ = ["EachExpert", "compute_each", "stacked"]

_ONE = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)\.weight")
_MERGED = re.compile(r"(.+)\.experts\.(gate_up_proj|down_proj)")


class EachExpert(SwitchLinear):
    """The product of every row with every expert, of which each row keeps its own: any dtype, at n_experts / k the work."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Rows `x` [..., 1, n_in] through expert `indices` [...] each: [..., 1, n_out]."""
        chosen = indices[..., None, None]
        out = mx.zeros((*indices.shape, 1, self.output_dims), x.dtype)
        for expert in range(self.num_experts):
            out = mx.where(chosen == expert, x @ self["weight"][expert].T, out)
        return out + self["bias"][indices][..., None, :] if "bias" in self else out


def stacked(weights: dict[str, Any], d_model: int) -> dict[str, Any]:
    """Weights in which each matrix of all experts is one [expert, output, input], whether the file has one an expert, or
    gate and up merged, or those with inputs first (where it cannot be told, outputs come first)."""
    named, each = dict[str, Any](), dict[str, dict[int, Any]]()
    for name, value in weights.items():
        if one := _ONE.fullmatch(name):
            each.setdefault(f"{one[1]}.switch_mlp.{one[3]}.weight", {})[int(one[2])] = value
        elif (merged := _MERGED.fullmatch(name)) and merged[2] == "gate_up_proj":
            gate, up = mx.split(value if value.shape[-1] == d_model else value.swapaxes(-1, -2), 2, axis=-2)
            named |= {f"{merged[1]}.switch_mlp.{part}_proj.weight": half for part, half in (("gate", gate), ("up", up))}
        elif merged:
            whole = value if value.shape[-2] == d_model else value.swapaxes(-1, -2)
            named[f"{merged[1]}.switch_mlp.down_proj.weight"] = whole
        else:
            named[name] = value
    return named | {name: mx.stack([found[i] for i in sorted(found)]) for name, found in each.items()}


def compute_each(model: Any, dtype: mx.Dtype) -> None:
    """Let a model's experts compute in `dtype` where `gather_mm` cannot."""
    if dtype == mx.float32 or mx.default_device() != mx.Device(mx.cpu):
        return
    for _, module in model.named_modules():
        if type(module) is SwitchLinear:
            module.__class__ = EachExpert
