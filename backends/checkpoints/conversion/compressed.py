"""compressed-tensors, vLLM's format: which tensors of a matrix there are, and what they are multiplied with.

As compressed-tensors documents it: `pack-quantized` has `weight_packed` int32 [out, in·bits/32], codes plus 2^(bits−1),
`weight_shape`, and for asymmetric ones `weight_zero_point`, packed likewise down the outputs; `int-quantized`,
`float-quantized` and `naive-quantized` have `weight` as int8 or float8; `nvfp4-pack-quantized` has two E2M1 floats to a byte,
the first in its low half, a float8 scale for 16 inputs and `weight_global_scale`, which divides it. weight[out, in] =
scale·(code − zero). What it says of activations (`input_scale` …) is left out: a plain folder computes in floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from .bit_fields import unpacked, words_for
from .source import FLOATS, NUMPY, Planned, Stored, Tensors, copied, refuse_left_over

__all__ = ["compressed_plan"]

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized")
_MIXED = "mixed-precision"
"""Each group of matrices has a format of its own."""
_CODES = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2")
_BY_GROUP = (True, "group", "dynamic")
"""Activation orders that put inputs into groups out of order."""
_BITS = (2, 4, 8)
_WEIGHT_PARTS = ("packed", "shape", "scale", "zero_point", "g_idx", "global_scale")
_ACTIVATIONS = tuple(f".{of}_{what}" for of in ("input", "output") for what in ("scale", "zero_point", "global_scale"))
_CACHE = tuple(f".{of}_{what}" for of in ("q", "k", "v") for what in ("scale", "zero_point"))
"""Of keys and values, where their cache was quantised."""
_E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
_NVFP4_GROUP = 16
_BLOCK = 1024
"""Outputs that are worked on at once."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One quantised matrix: how its codes are stored, and which of them share a scale."""

    name: str
    format: str
    bits: int
    shape: tuple[int, int]
    tile: tuple[int, int]
    """Outputs and inputs under one scale."""


def compressed_plan(
    source: Tensors, quantization: Mapping[str, Any], dtype: str, *, keep: str, transposed: bool
) -> list[Planned]:
    """Tensors of the plain folder; arguments as those of `gptq_plan`. Raises InvalidArgument and Unsupported."""
    groups = _groups(quantization)
    names = [name.removesuffix(".weight_scale") for name in source.stored if name.endswith(".weight_scale")]
    if not names:
        raise InvalidArgument(
            "config.json says that the weights are compressed (compressed-tensors), and no tensor is (none is named "
            "….weight_scale); remove quantization_config if they are plain"
        )
    matrices = [_matrix(source, name, groups) for name in names]
    gone = {f"{name}.weight_{part}" for name in names for part in _WEIGHT_PARTS} | {f"{name}.weight" for name in names}
    plain = [name for name in source.stored if name not in gone and not name.endswith((*_ACTIVATIONS, *_CACHE))]
    refuse_left_over(plain)
    if coded := [name for name in plain if name.endswith(".weight") and source.stored[name].dtype in _CODES]:
        raise InvalidArgument(
            f"{coded[0]} is stored as {source.stored[coded[0]].dtype}, and its weight_scale is missing; fetch it again"
        )
    plan = [copied(source, name, keep) for name in plain]
    return plan + [_planned(source, matrix, dtype, transposed) for matrix in matrices]


def _groups(quantization: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How each group of matrices is quantised, with the format's name. Raises Unsupported for what is not read here."""
    for name, what in (("sparsity_config", "sparse"), ("transform_config", "rotated")):
        inner: Any = quantization.get(name) or {}
        if inner and inner.get("format", name) != "dense" and inner.get("config_groups", inner):
            raise Unsupported(f"the weights are {what} besides ({name} of compressed-tensors), which cannot be read")
    top = str(quantization.get("format"))
    groups: list[dict[str, Any]] = []
    for group in cast("dict[str, dict[str, Any]]", quantization.get("config_groups") or {}).values():
        written = str(group.get("format") or top)
        if written not in _FORMATS:
            raise _not_read(written)
        if group.get("weights"):
            groups.append({**group["weights"], "format": written})
    if top not in (*_FORMATS, _MIXED):
        raise _not_read(top)
    if not groups:
        raise InvalidArgument("quantization_config (compressed-tensors) has no config_groups with weights")
    return groups


def _not_read(written: str) -> Unsupported:
    return Unsupported(f"compressed-tensors' format {written!r} cannot be read; these can: {', '.join(_FORMATS)}")


def _matrix(source: Tensors, name: str, groups: list[dict[str, Any]]) -> _Matrix:
    """The group that the tensors of one matrix fit. Raises InvalidArgument where none does."""
    scale = source.stored[f"{name}.weight_scale"].shape
    whys: list[str] = []
    for group in groups:
        bits, shape, why = _codes(source, name, group)
        if not why:
            tile = _tile(group, shape)
            expected = (-(-shape[0] // tile[0]), -(-shape[1] // tile[1]))
            if math.prod(scale) == math.prod(expected) and scale in (expected, expected[:1], expected[1:], ()):
                return _checked(source, _Matrix(name, group["format"], bits, shape, tile), group, expected)
            why = f"weight_scale has shape {list(scale)}, not {list(expected)}"
        whys.append(f"{group['format']} of {group.get('num_bits')} bits: {why}")
    raise InvalidArgument(
        f"the tensors of {name} are not what config.json says (compressed-tensors, {'; '.join(whys)}); "
        "take the config.json that came with them"
    )


def _codes(source: Tensors, name: str, group: Mapping[str, Any]) -> tuple[int, tuple[int, int], str]:
    """Bits and shape [out, in] of a matrix whose codes are stored as a group says; else why they are not."""
    packed, plain = (source.stored.get(f"{name}.{part}") for part in ("weight_packed", "weight"))
    bits, kind = int(group.get("num_bits") or 0), group.get("type")
    none = (0, 0)
    if group["format"] == "pack-quantized":
        if kind != "int" or bits not in _BITS:
            return 0, none, f"{kind} of {bits} bits cannot be read, int of {', '.join(map(str, _BITS))} can"
        if packed is None or packed.dtype != "I32" or f"{name}.weight_shape" not in source.stored:
            return 0, none, "weight_packed (I32) or weight_shape is missing"
        written = [int(n) for n in source.get(f"{name}.weight_shape").reshape(-1)]
        if len(written) != 2 or packed.shape != (written[0], words_for(written[1], bits)):
            return 0, none, f"weight_packed has shape {list(packed.shape)} for a weight_shape of {written}"
        return bits, (written[0], written[1]), ""
    if group["format"] == "nvfp4-pack-quantized":
        return _nvfp4(source, name, packed)
    if plain is None or len(plain.shape) != 2:
        return 0, none, "weight is missing"
    dtypes = ("I8",) if kind == "int" else ("F8_E4M3", "F8_E5M2")
    if bits != 8 or plain.dtype not in dtypes:
        return 0, none, f"weight is stored as {plain.dtype}"
    return 8, (plain.shape[0], plain.shape[1]), ""


def _nvfp4(source: Tensors, name: str, packed: Stored | None) -> tuple[int, tuple[int, int], str]:
    scale, overall = (source.stored.get(f"{name}.weight_{part}") for part in ("scale", "global_scale"))
    if packed is None or packed.dtype != "U8" or len(packed.shape) != 2:
        return 0, (0, 0), "weight_packed (U8) is missing"
    if overall is None or math.prod(overall.shape) != 1 or scale is None or scale.dtype != "F8_E4M3":
        return 0, (0, 0), "weight_global_scale, or weight_scale as F8_E4M3, is missing"
    return 4, (packed.shape[0], 2 * packed.shape[1]), ""


def _tile(group: Mapping[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
    strategy = group.get("strategy") or ("group" if group.get("group_size") else "tensor")
    if strategy == "tensor":
        return shape
    if strategy == "channel":
        return 1, shape[1]
    if strategy in ("group", "tensor_group"):
        size = _NVFP4_GROUP if group["format"].startswith("nvfp4") else int(group.get("group_size") or -1)
        return 1, shape[1] if size < 0 else size
    block: Any = group.get("block_structure")
    if strategy == "block" and isinstance(block, list) and len(cast("list[Any]", block)) == 2:
        return int(block[0]), int(block[1])
    raise Unsupported(f"compressed-tensors' strategy {strategy!r} cannot be read for weights")


def _checked(source: Tensors, matrix: _Matrix, group: Mapping[str, Any], scales: tuple[int, int]) -> _Matrix:
    """The matrix, if its zero points are there where they must be."""
    stored = source.stored.get(f"{matrix.name}.weight_zero_point")
    if group.get("actorder") in _BY_GROUP and f"{matrix.name}.weight_g_idx" not in source.stored:
        raise InvalidArgument(
            f"config.json says that inputs are grouped in order of activation (actorder), and {matrix.name}.weight_g_idx, "
            "which says how, is missing; fetch it again"
        )
    if stored is None and not group.get("symmetric", True):
        raise InvalidArgument(
            f"config.json says that {matrix.name} is asymmetric, and {matrix.name}.weight_zero_point is missing"
        )
    packed = matrix.format == "pack-quantized" and stored is not None and stored.dtype == "I32"
    expected = (words_for(scales[0], matrix.bits), scales[1]) if packed else scales
    if stored is not None and math.prod(stored.shape) != math.prod(expected):
        raise InvalidArgument(
            f"{matrix.name}.weight_zero_point has shape {list(stored.shape)}; its scales make {list(expected)}"
        )
    return matrix


def _planned(source: Tensors, matrix: _Matrix, dtype: str, transposed: bool) -> Planned:
    kind, (n_out, n_in) = FLOATS[dtype], matrix.shape

    def make() -> Array:
        weight = np.empty(matrix.shape, NUMPY[kind])
        scales, zeros = _scales(source, matrix), _zeros(source, matrix)
        columns = _columns(source, matrix)
        codes = source.get(f"{matrix.name}.{'weight_packed' if 'pack-' in matrix.format else 'weight'}")
        with np.errstate(over="ignore"):  # whoever writes it looks for what a dtype does not hold
            for start in range(0, n_out, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, n_out))
                at = np.ix_(rows // matrix.tile[0], columns)
                values = _values(codes[rows], matrix)
                weight[rows] = (scales[at] * (values - zeros[at] if zeros is not None else values)).astype(weight.dtype)
        return np.ascontiguousarray(weight.T) if transposed else weight

    return Planned(f"{matrix.name}.weight", kind, (n_in, n_out) if transposed else (n_out, n_in), make)


def _values(codes: Array, matrix: _Matrix) -> Array:
    """float32 [out, in] of stored codes."""
    if matrix.format == "pack-quantized":
        fields = unpacked(np.ascontiguousarray(codes.T), matrix.bits, matrix.shape[1]).T
        return fields.astype(np.float32) - (1 << matrix.bits - 1)
    if matrix.format == "nvfp4-pack-quantized":
        halves = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(codes), -1)
        return np.where(halves & 8, -1, 1).astype(np.float32) * _E2M1[halves & 7]
    return codes.astype(np.float32)


def _scales(source: Tensors, matrix: _Matrix) -> Array:
    """float32 [tile of outputs, tile of inputs]."""
    scales = source.get(f"{matrix.name}.weight_scale").astype(np.float32).reshape(_n_tiles(matrix))
    if matrix.format == "nvfp4-pack-quantized":
        scales = scales / source.get(f"{matrix.name}.weight_global_scale").astype(np.float32).reshape(())
    return scales


def _zeros(source: Tensors, matrix: _Matrix) -> Array | None:
    """As the scales; None where they are all zero."""
    name = f"{matrix.name}.weight_zero_point"
    if name not in source.stored:
        return None
    zeros, tiles = source.get(name), _n_tiles(matrix)
    if source.stored[name].dtype == "I32" and matrix.format == "pack-quantized":
        fields = unpacked(np.ascontiguousarray(zeros), matrix.bits, tiles[0])
        return fields.astype(np.float32) - (1 << matrix.bits - 1)
    return zeros.astype(np.float32).reshape(tiles)


def _n_tiles(matrix: _Matrix) -> tuple[int, int]:
    return -(-matrix.shape[0] // matrix.tile[0]), -(-matrix.shape[1] // matrix.tile[1])


def _columns(source: Tensors, matrix: _Matrix) -> Array:
    """The tile of each input: in order, or as `weight_g_idx` says (activation order)."""
    name, n_in = f"{matrix.name}.weight_g_idx", matrix.shape[1]
    in_order = np.arange(n_in) // matrix.tile[1]
    if name not in source.stored:
        return in_order
    index = source.get(name).reshape(-1)
    if (index == -1).all():  # as it is written where there is no such order
        return in_order
    if len(index) != n_in or index.min() < 0 or index.max() >= _n_tiles(matrix)[1]:
        raise InvalidArgument(f"{name} does not name a group of scales for each of {n_in} inputs")
    return index
