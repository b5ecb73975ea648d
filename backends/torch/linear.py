"""x · Wᵀ + b where it takes long: on x86 CPUs by oneDNN, where torch was built with it.

Float32: torch itself takes MKL. On an AMD machine oneDNN needs a third to four fifths of its time from two rows on, and does
not gain for every single row; Intel's were not tried. Values agree to a few units of the last place.
A weight that oneDNN has laid out its own way (`pack`) is read up to twice as fast again, in bfloat16 too, for a copy of it.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import linear as stock

__all__ = ["PackedWeight", "linear", "pack", "use_in"]

BLOCKS = (128, 64, 32, 16)
"""In float32 oneDNN keeps half a megabyte for each number of rows that a weight's shape was multiplied with (measured: 1.2
GiB after prompts of 400 lengths), so it is asked for these and for fewer rows only. In bfloat16 torch itself asks for all,
and a worker bounds what is kept (server/gateway/process.py)."""
_SHARE = 4
"""A model's weights are copied where this many times their bytes are free."""
_PACKED_FOR = 8
"""Rows that `pack` names to oneDNN. Any number may be multiplied with what it gives; measured, others gave no better."""

_HAS_ONEDNN = (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
)
_HAS_BFLOAT16 = _HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
"""The processor computes in it; else oneDNN refuses."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [out, in] that does not learn, with a copy as oneDNN lays it out."""

    plain: torch.Tensor
    packed: torch.Tensor


def pack(weight: torch.Tensor) -> torch.Tensor | PackedWeight:
    """A weight [out, in] as `linear` multiplies fastest with; elsewhere its rows one behind the other in memory."""
    return _packed(weight) if _packable(weight) else weight.contiguous()


def _packed(weight: torch.Tensor) -> PackedWeight:
    return PackedWeight(weight, torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR))


def _packable(weight: torch.Tensor) -> bool:
    if not _HAS_ONEDNN or weight.device.type != "cpu" or not weight.numel() or weight.requires_grad:
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and _HAS_BFLOAT16)


def linear(x: torch.Tensor, weight: torch.Tensor | PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in], weight [out, in] → [..., out]. Differentiable by x alone where oneDNN computes it."""
    plain = weight.plain if isinstance(weight, PackedWeight) else weight
    if x.device.type != "cpu" or plain.dtype != x.dtype or not x.numel() or not _HAS_ONEDNN:
        return stock(x, plain, bias)
    if isinstance(weight, torch.Tensor) and (weight.requires_grad or weight.dtype != torch.float32):
        return stock(x, weight, bias)
    laid_out = weight.packed if isinstance(weight, PackedWeight) else weight
    return _OneDnn.apply(x, plain, laid_out, bias) if x.requires_grad else _product(x, laid_out, len(plain), bias)


def use_in(model: nn.Module, spare: int | None = 0) -> None:
    """Let the linear layers of a model that does not learn compute so. Their hooks, weights and types stay as they are.

    `spare`: bytes of memory that are free (None: not known). Copies of the weights may take a quarter of them; else none
    is made. A weight that changes later leaves its copy behind, unless it is written to behind autograd's back
    (`weight.data.mul_`), which nothing can see.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    packable = {layer for layer in layers if _packable(layer.weight) and not layer.weight.is_inference()}
    if spare is None or sum(layer.weight.nbytes for layer in packable) * _SHARE > spare:
        packable = set()
    for layer in layers:
        if layer in packable:
            cast("Any", layer).forward = partial(_packed_forward, layer, _packed(layer.weight), _state(layer.weight))
        elif layer.weight.dtype == torch.float32:
            cast("Any", layer).forward = partial(_forward, layer)


def _state(weight: torch.Tensor) -> tuple[int, int, torch.dtype]:
    """What changes when the weight does."""
    return weight._version, weight.data_ptr(), weight.dtype


def _forward(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, layer.weight, layer.bias)


def _packed_forward(
    layer: nn.Linear, packed: PackedWeight, state: tuple[int, int, torch.dtype], x: torch.Tensor
) -> torch.Tensor:
    weight = layer.weight
    current = weight is packed.plain and _state(weight) == state  # else the copy is of what was
    return linear(x, packed if current else weight, layer.bias)


def _product(x: torch.Tensor, weight: torch.Tensor, width: int, bias: torch.Tensor | None) -> torch.Tensor:
    rows, start = x.reshape(-1, x.shape[-1]), 0
    bias = None if bias is None else bias.contiguous()  # oneDNN reads it as if it were
    out = x.new_empty(len(rows), width)  # filled block by block: logits of a long prompt are large
    for size in _sizes(len(rows)) if x.dtype == torch.float32 else [len(rows)]:
        block = slice(start, start + size)
        out[block] = torch.ops.mkldnn._linear_pointwise(rows[block], weight, bias, "none", [], "")
        start += size
    return out.view(*x.shape[:-1], width)


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
    def forward(
        ctx: Any, x: torch.Tensor, plain: torch.Tensor, laid_out: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(plain)
        return _product(x, laid_out, len(plain), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return torch.matmul(gradients[0], weight), None, None, None
