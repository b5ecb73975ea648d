"""Weights of few bits on MLX: mlx's own modules compute with the codes; fp8 is unpacked when it is read."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.switch_layers import SwitchLinear

from ...protos.errors import InvalidArgument
from ...protos.tensors import Array, numpy_dtype
from ..checkpoints.quantised.at_load import AtLoad, bits_of, group_of, is_layer, told
from ..checkpoints.quantised.codes import affine
from ..checkpoints.quantised.scheme import Layout, Scheme

__all__ = ["check_layouts", "held", "quantise", "unpack_fp8"]

_SCALE = "_scale_inv"


def unpack_fp8(scheme: Scheme, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Weights with those of fp8 as float32, by their scales."""
    plain = {name: value for name, value in weights.items() if not name.endswith(_SCALE)}
    for name, scale in weights.items():
        if name.endswith(_SCALE):
            codes = weights[name.removesuffix(_SCALE)]
            if codes.dtype != mx.uint8 or not mx.issubdtype(scale.dtype, mx.floating):
                raise InvalidArgument(
                    f"{name} scales {codes.dtype} by {scale.dtype}, which is not unpacked here; use torch"
                )
            spread = scale.astype(mx.float32)
            for axis, size in zip((-2, -1), scheme.block or (), strict=False):
                spread = mx.repeat(spread, size, axis=axis)
            spread = spread[..., : codes.shape[-2], : codes.shape[-1]] if scheme.block else spread.reshape(1, 1)
            plain[name.removesuffix(_SCALE)] = mx.from_fp8(codes, mx.float32) * spread
    return plain


def check_layouts(model: Any, scheme: Scheme) -> None:
    """Raise InvalidArgument where mlx-lm took a weight for something else than the config says: it goes by the shapes."""
    for path, module in model.named_modules():
        if "scales" not in module:
            continue
        found = Layout(module.bits, module.group_size, module.mode)
        declared = scheme.layout_of(path) if scheme.method == "mlx" else Layout(4, 32, "mxfp4")
        if found != declared:
            raise InvalidArgument(
                f"{path}.weight is stored in {found}, and config.json says {declared or 'plain'}; take the config.json that "
                "came with the weights"
            )


def quantise(model: Any, quantize: str) -> AtLoad:
    """Hold the layers' linear weights in few bits from here on."""
    bits, done, skipped = bits_of(quantize), list[str](), list[str]()

    def choose(path: str, module: Any) -> bool | dict[str, int]:
        if type(module) not in (nn.Linear, SwitchLinear):
            return False
        n_in = module.weight.shape[-1]
        if not is_layer(path, n_in):
            if path != "lm_head":
                skipped.append(path)
            return False
        done.append(path)
        return {"group_size": group_of(n_in) or 0, "bits": bits}

    nn.quantize(model, class_predicate=choose)
    return told(quantize, done, skipped)


def held(model: Any, tail: str) -> Array:
    """The quantised weight [out, in] whose name ends so, in float32."""
    module = next(
        found for path, found in model.named_modules() if f"{path}.weight".endswith(tail) and "scales" in found
    )
    words, scales, biases = (_on_the_host(module[name]) for name in ("weight", "scales", "biases"))
    return affine(words, scales.astype(np.float32), biases.astype(np.float32), module.bits)


def _on_the_host(value: mx.array) -> Array:
    """As numpy, without an operation of MLX's: whoever asks for a weight is on another thread, and would get a stream there."""
    view = memoryview(cast("Any", value))
    dtype = numpy_dtype("bfloat16") if value.dtype == mx.bfloat16 else np.dtype(view.format)
    return np.frombuffer(bytes(view), dtype).reshape(value.shape)
