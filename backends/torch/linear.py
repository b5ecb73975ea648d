"""x · Wᵀ + b where it takes long: float32 on x86 CPUs by oneDNN, where torch was built with it.

torch itself takes MKL there. On an AMD machine oneDNN needs a third to four fifths of its time from two rows on, and does not
gain for every single row; Intel's were not tried. Values agree to a few units of the last place.
"""

from __future__ import annotations

import platform
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear as stock

__all__ = ["linear", "use_in"]

BLOCKS = (128, 64, 32, 16)
"""oneDNN keeps half a megabyte for each number of rows that a weight's shape was ever multiplied with (measured: 1.2 GiB
after prompts of 400 lengths), so it is asked for these and for fewer rows only."""

_HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in], weight [out, in] → [..., out]. Differentiable by x alone where oneDNN computes it."""
    if not (_HAS_ONEDNN and weight.dtype == x.dtype == torch.float32 and x.device.type == "cpu" and x.numel()):
        return stock(x, weight, bias)
    if weight.requires_grad:
        return stock(x, weight, bias)
    return _OneDnn.apply(x, weight, bias) if x.requires_grad else _product(x, weight, bias)


def use_in(model: nn.Module) -> None:
    """Let a model's linear layers compute so. Their hooks, weights and types stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            cast("Any", module).forward = partial(_forward, module)


def _forward(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight, module.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rows, start = x.reshape(-1, x.shape[-1]), 0
    out = x.new_empty(len(rows), weight.shape[0])  # filled block by block: logits of a long prompt are large
    for size in _sizes(len(rows)):
        block = slice(start, start + size)
        out[block] = torch.ops.mkldnn._linear_pointwise(rows[block], weight, bias, "none", [], "")
        start += size
    return out.view(*x.shape[:-1], weight.shape[0])


def _sizes(n: int) -> list[int]:
    """n rows as few blocks of the sizes that oneDNN is asked for."""
    sizes: list[int] = []
    for size in BLOCKS:
        sizes += [size] * (n // size)
        n %= size
    return [*sizes, n] if n else sizes


class _OneDnn(torch.autograd.Function):
    """The operation itself has no derivative in torch."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.matmul(gradients[0], weight), None, None
