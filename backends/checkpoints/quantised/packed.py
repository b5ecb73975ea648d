"""The weights that a checkpoint holds packed, under the names and shapes that they have unpacked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from .codes import Values, affine, e2m1, e4m3, e8m0, unpacked
from .scheme import Layout, Scheme

__all__ = ["Packed", "Stored", "packed_tensors"]

_FP8 = "F8_E4M3"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a safetensors header has it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """One weight, and the tensors that it is stored in."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]
    """Names in the file."""
    values: Callable[..., Values]
    """Of the parts, in their order, floats in float32."""


def packed_tensors(scheme: Scheme | None, stored: Mapping[str, Stored]) -> dict[str, Packed]:
    """Name → packed weight, for all that a checkpoint holds. Raises InvalidArgument where config and tensors disagree."""
    if scheme is None or not stored:  # a config alone contradicts nothing
        return {}
    if scheme.method == "mlx":
        found = _of_mlx(scheme, stored)
    elif scheme.method == "mxfp4":
        found = {
            name.removesuffix("_blocks"): _mxfp4(name.removesuffix("_blocks"), stored)
            for name in stored
            if name.endswith("_blocks")
        }
    elif scheme.method == "fp8":
        found = {name: _fp8(name, scheme, stored) for name, entry in stored.items() if entry.dtype == _FP8}
    else:
        return {}
    if not found:
        raise InvalidArgument(
            f"config.json says that the weights are quantised ({scheme.told('')}), and no tensor of the checkpoint is; "
            "take the config.json that came with them, or remove the entry"
        )
    return found


def _of_mlx(scheme: Scheme, stored: Mapping[str, Stored]) -> dict[str, Packed]:
    found: dict[str, Packed] = {}
    for name, scales in stored.items():
        path, _, last = name.rpartition(".")
        weight = stored.get(f"{path}.weight")
        if last != "scales" or weight is None or weight.dtype != "U32":
            continue
        layout = scheme.layout_of(path)
        n_in = weight.shape[-1] * 32 // layout.bits if layout else 0
        modes = ("mxfp4", "mxfp8", "nvfp4") if scales.dtype == "U8" else ("affine",)
        if layout is None or n_in != scales.shape[-1] * layout.group or layout.mode not in modes:
            raise InvalidArgument(
                f"{path}.weight is not stored as config.json says ({layout or 'plain'}): its codes are "
                f"{list(weight.shape)} words of 32 bits with scales {list(scales.shape)} ({scales.dtype}); take the "
                "config.json that came with the weights"
            )
        parts = [f"{path}.weight", name, *([f"{path}.biases"] if layout.mode == "affine" else [])]
        if missing := [part for part in parts if part not in stored]:
            raise InvalidArgument(f"the checkpoint lacks {missing[0]}, without which {path}.weight has no values")
        found[f"{path}.weight"] = Packed((*weight.shape[:-1], n_in), tuple(parts), _mlx_values(path, layout, stored))
    return found


def _mlx_values(path: str, layout: Layout, stored: Mapping[str, Stored]) -> Callable[..., Values]:
    if layout.mode == "affine":
        return partial(affine, bits=layout.bits)
    if layout.mode == "nvfp4" and f"{path}.global_scale" in stored:
        return _no_values
    return {"mxfp4": _mxfp4_words, "mxfp8": _mxfp8_words, "nvfp4": _nvfp4_words}[layout.mode]


def _mxfp4_words(words: Array, scales: Array) -> Values:
    return e2m1(words, e8m0(scales))


def _nvfp4_words(words: Array, scales: Array) -> Values:
    return e2m1(words, e4m3(scales))


def _mxfp8_words(words: Array, scales: Array) -> Values:
    grouped = e4m3(unpacked(words, 8)).reshape(*scales.shape, -1)
    return (grouped * e8m0(scales)[..., None]).reshape(*words.shape[:-1], -1)


def _no_values(*_: Array) -> Values:
    raise Unsupported(
        "nvfp4 weights with a scale of the whole tensor cannot be read here; read the model's activations"
    )


def _mxfp4(name: str, stored: Mapping[str, Stored]) -> Packed:
    """[expert, out, group, byte], as transformers shows it: [expert, in, out]."""
    blocks, scales = stored[f"{name}_blocks"], stored.get(f"{name}_scales")
    if scales is None or blocks.shape[:-1] != scales.shape or {blocks.dtype, scales.dtype} != {"U8"}:
        raise InvalidArgument(
            f"{name}_blocks is not mxfp4 as config.json says: it needs {name}_scales, a byte for each of its groups "
            f"{list(blocks.shape[:-1])}; take the config.json that came with the weights"
        )
    *front, n_out, n_groups, n_bytes = blocks.shape

    def values(codes: NDArray[np.uint8], exponents: NDArray[np.uint8]) -> Values:
        return e2m1(codes.reshape(*codes.shape[:-2], -1), e8m0(exponents)).swapaxes(-1, -2)

    return Packed((*front, n_groups * n_bytes * 2, n_out), (f"{name}_blocks", f"{name}_scales"), values)


def _fp8(name: str, scheme: Scheme, stored: Mapping[str, Stored]) -> Packed:
    weight, scale_name = stored[name], f"{name}_scale_inv"
    scales = stored.get(scale_name)
    block = scheme.block or weight.shape[-2:]
    grid = tuple(-(-n // size) for n, size in zip(weight.shape[-2:], block, strict=True))
    if (
        scales is None
        or (scheme.block and scales.shape[-2:] != grid)
        or (not scheme.block and math.prod(scales.shape) != 1)
    ):
        raise InvalidArgument(
            f"{name} is stored in fp8 and has no {scale_name} of {list(grid)} scales, as config.json says "
            f"({scheme.told('')}); take the config.json that came with the weights"
        )

    def values(codes: NDArray[np.uint8], scale: Array) -> Values:
        scale = e8m0(scale) if scale.dtype == np.uint8 else scale
        spread = scale.reshape(*weight.shape[:-2], *grid)
        for axis, size in zip((-2, -1), block, strict=True):
            spread = spread.repeat(size, axis=axis)
        return e4m3(codes) * spread[..., : weight.shape[-2], : weight.shape[-1]]

    return Packed(weight.shape, (name, scale_name), values)
