"""Linear layers whose weights are held in few bits: unpacked for each product, forwards and backwards."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...protos.errors import FailedPrecondition
from ...protos.tensors import Array
from ..checkpoints.quantised.at_load import AtLoad, bits_of, group_of, is_layer, told
from .linear import linear

__all__ = ["QuantisedLinear", "held", "quantise"]

_SMALLEST = 1e-7
"""Scale of a group whose values are all alike."""


class QuantisedLinear(nn.Module):
    """x · Wᵀ + b, where W [out, in] is scale · code + offset for each group of inputs."""

    codes: torch.Tensor
    """[out, in] bytes; of four bits [out, in / 2], the first of two in the low half."""
    scales: torch.Tensor
    offsets: torch.Tensor
    """Both [out, group]."""
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, group: int) -> None:
        super().__init__()
        self.bits, self.group = bits, group
        self.out_features, self.in_features = weight.shape
        codes, scales, offsets = _rounded(weight.detach().float().unflatten(-1, (-1, group)), bits)
        codes = codes.flatten(-2)
        self.register_buffer("codes", codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4)
        self.register_buffer("scales", scales.to(weight.dtype))
        self.register_buffer("offsets", offsets.to(weight.dtype))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """W [out, in]."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        values = codes.unflatten(-1, (-1, self.group)).to(wide)
        return (
            torch.addcmul(self.offsets[..., None].to(wide), values, self.scales[..., None].to(wide))
            .flatten(-2)
            .to(dtype)
        )

    @property
    def weight(self) -> torch.Tensor:
        """As a plain layer has it, made anew each time."""
        return self.unpacked(self.scales.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]."""
        return cast("torch.Tensor", _Product.apply(x, self))


class _Product(torch.autograd.Function):
    """Differentiable by x. Keeps no unpacked weight for the way back, which would hold the whole model unpacked."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return linear(x, layer.unpacked(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.matmul(gradients[0], ctx.layer.unpacked(gradients[0].dtype)), None


def _rounded(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and offsets of [out, group, value], as mlx.core.quantize chooses them: zero stays zero."""
    low, high = groups.amin(-1), groups.amax(-1)
    steps = (1 << bits) - 1
    scale = ((high - low) / steps).clamp(min=_SMALLEST)
    from_low = low.abs() > high.abs()
    scale, edge = torch.where(from_low, scale, -scale), torch.where(from_low, low, high)
    n_steps = torch.round(edge / scale)
    moved = n_steps != 0
    scale = torch.where(moved, edge / torch.where(moved, n_steps, 1), scale)
    offset = torch.where(moved, edge, 0.0)
    codes = torch.round((groups - offset[..., None]) / scale[..., None]).clamp(0, steps).to(torch.uint8)
    return codes, scale, offset


def quantise(model: nn.Module, quantize: str) -> AtLoad:
    """Hold the layers' linear weights in few bits from here on. Raises FailedPrecondition for mixtures of experts."""
    bits, done, skipped = bits_of(quantize), list[str](), list[str]()
    if any(parameter.ndim > 2 and "expert" in name for name, parameter in model.named_parameters()):
        raise FailedPrecondition(
            f"quantize {quantize} on torch is for models without experts, whose weights lie in one tensor there; use mlx"
        )
    for path, module in list(model.named_modules()):
        if type(module) not in (nn.Linear, Conv1D) or module is _head(model):
            continue
        weight = module.weight if isinstance(module, nn.Linear) else cast("Any", module).weight.T
        if not is_layer(path, weight.shape[-1]):
            skipped.append(path)
            continue
        group = group_of(weight.shape[-1])
        assert group is not None
        model.set_submodule(path, QuantisedLinear(weight, cast("Any", module).bias, bits, group))
        done.append(path)
    with contextlib.suppress(
        AttributeError, OSError
    ):  # glibc keeps what plain weights took, and nobody may need as much again
        ctypes.CDLL(None).malloc_trim(0)
    return told(quantize, done, skipped)


def _head(model: nn.Module) -> nn.Module | None:
    return cast("Any", model).get_output_embeddings()


def held(model: nn.Module, tail: str) -> Array:
    """The quantised weight [out, in] whose name ends so, in float32."""
    module = next(
        found
        for path, found in model.named_modules()
        if isinstance(found, QuantisedLinear) and f"{path}.weight".endswith(tail)
    )
    return module.unpacked(torch.float32).cpu().numpy()
