"""Experts on a device whose `gather_mm` knows float32 alone, as MLX's CPU does."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.switch_layers import SwitchLinear

__all__ = ["EachExpert", "compute_each"]


class EachExpert(SwitchLinear):
    """The product of every row with every expert, of which each row keeps its own: any dtype, at n_experts / k the work."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Rows `x` [..., 1, n_in] through expert `indices` [...] each: [..., 1, n_out]."""
        chosen = indices[..., None, None]
        out = mx.zeros((*indices.shape, 1, self.output_dims), x.dtype)
        for expert in range(self.num_experts):
            out = mx.where(chosen == expert, x @ self["weight"][expert].T, out)
        return out + self["bias"][indices][..., None, :] if "bias" in self else out


def compute_each(model: Any, dtype: mx.Dtype) -> None:
    """Let a model's experts compute in `dtype` where `gather_mm` cannot."""
    if dtype == mx.float32 or mx.default_device() != mx.Device(mx.cpu):
        return
    for _, module in model.named_modules():
        if type(module) is SwitchLinear:
            module.__class__ = EachExpert
