"""Packs matrices as the public descriptions of the formats say, number by number, and says what they mean.

Nothing here is shared with what reads them: words are built as whole numbers, the values' formula is written out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

__all__ = ["Packed", "awq", "compressed", "gptq", "int_quantised", "nvfp4", "pack_folder", "words_of"]

Array = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Packed:
    """What stands in a file for one matrix, and the matrix [out, in] in float32 that it means."""

    parts: dict[str, Array]
    """Suffix -> tensor."""
    weight: Array


def words_of(values: list[int], bits: int) -> list[int]:
    """Signed 32-bit words of one long number in which value i begins at bit i·bits."""
    number = sum(int(value) << (i * bits) for i, value in enumerate(values))
    n = -(-len(values) * bits // 32)
    words = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(n)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def _down(values: Array, bits: int) -> Array:
    """int32 [word, column] of values [row, column]."""
    return np.array([words_of(list(column), bits) for column in values.T], np.int32).T.copy()


def _scales(rng: np.random.Generator, *shape: int) -> Array:
    return (rng.uniform(0.005, 0.05, shape)).astype(np.float16)


def gptq(
    rng: np.random.Generator,
    n_out: int,
    n_in: int,
    *,
    bits: int = 4,
    group: int = 16,
    v2: bool = False,
    act_order: bool = False,
    sym: bool = False,
) -> Packed:
    """One matrix in GPTQ's format; `group` −1: all inputs share a scale."""
    size = n_in if group < 0 else group
    n_groups = -(-n_in // size)
    index = np.arange(n_in) // size
    if act_order:
        index = rng.permutation(index)
    codes = rng.integers(0, 1 << bits, (n_in, n_out))
    # Zero 0 cannot be written less one in every field.
    zeros = np.full((n_groups, n_out), 1 << bits - 1) if sym else rng.integers(1, 1 << bits, (n_groups, n_out))
    scales = _scales(rng, n_groups, n_out)
    weight = np.empty((n_out, n_in), np.float32)
    for i in range(n_in):
        weight[:, i] = scales[index[i]].astype(np.float32) * (codes[i] - zeros[index[i]]).astype(np.float32)
    parts = {
        "qweight": _down(codes, bits),
        "qzeros": np.array([words_of(list(row), bits) for row in (zeros if v2 else zeros - 1)], np.int32),
        "scales": scales,
        "g_idx": index.astype(np.int32),
    }
    return Packed(parts, weight)


def awq(rng: np.random.Generator, n_out: int, n_in: int, *, group: int = 16) -> Packed:
    """One matrix in AutoAWQ's GEMM layout."""
    size = n_in if group < 0 else group
    codes, zeros = rng.integers(0, 16, (n_in, n_out)), rng.integers(0, 16, (n_in // size, n_out))
    scales = _scales(rng, n_in // size, n_out)
    weight = np.empty((n_out, n_in), np.float32)
    for i in range(n_in):
        weight[:, i] = scales[i // size].astype(np.float32) * (codes[i] - zeros[i // size]).astype(np.float32)

    def interleaved(values: Array) -> Array:
        rows = [[words_of([row[8 * c + o] for o in AWQ_ORDER], 4)[0] for c in range(n_out // 8)] for row in values]
        return np.array(rows, np.int32)

    return Packed({"qweight": interleaved(codes), "qzeros": interleaved(zeros), "scales": scales}, weight)


def compressed(
    rng: np.random.Generator,
    n_out: int,
    n_in: int,
    *,
    bits: int = 4,
    group: int = 16,
    asymmetric: bool = False,
    act_order: bool = False,
) -> Packed:
    """One matrix as compressed-tensors' pack-quantized; `group` −1: one scale an output, 0: one for all."""
    half = 1 << bits - 1
    codes = rng.integers(-half, half, (n_out, n_in))
    n_rows = 1 if group == 0 else n_out
    size = n_in if group <= 0 else group
    index = np.arange(n_in) // size
    if act_order:
        index = rng.permutation(index)
    scales = _scales(rng, n_rows, n_in // size)
    zeros = rng.integers(-half, half, scales.shape) if asymmetric else np.zeros(scales.shape, int)
    weight = np.empty((n_out, n_in), np.float32)
    for o in range(n_out):
        row = 0 if group == 0 else o
        weight[o] = scales[row, index].astype(np.float32) * (codes[o] - zeros[row, index]).astype(np.float32)
    parts = {
        "weight_packed": np.array([words_of(list(row + half), bits) for row in codes], np.int32),
        "weight_shape": np.array([n_out, n_in], np.int64),
        "weight_scale": scales,
        **({"weight_zero_point": _down(zeros + half, bits)} if asymmetric else {}),
        **({"weight_g_idx": index.astype(np.int32)} if act_order else {}),
    }
    return Packed(parts, weight)


def int_quantised(
    rng: np.random.Generator, n_out: int, n_in: int, *, strategy: str = "channel", kind: str = "int", block: int = 16
) -> Packed:
    """One matrix as int-quantized or float-quantized: a code a byte."""
    if kind == "int":
        codes = rng.integers(-128, 128, (n_out, n_in)).astype(np.int8)
    else:
        codes = rng.standard_normal((n_out, n_in)).astype(ml_dtypes.float8_e4m3fn)
    tile = {"tensor": (n_out, n_in), "channel": (1, n_in), "block": (block, block), "group": (1, block)}[strategy]
    scales = rng.uniform(0.01, 0.1, (n_out // tile[0], n_in // tile[1])).astype(np.float32)
    weight = np.empty((n_out, n_in), np.float32)
    for o in range(n_out):
        for i in range(n_in):
            weight[o, i] = scales[o // tile[0], i // tile[1]] * np.float32(codes[o, i])
    stored = scales.reshape(1) if strategy == "tensor" else scales
    return Packed({"weight": codes, "weight_scale": stored, "input_scale": np.ones(1, np.float32)}, weight)


def nvfp4(rng: np.random.Generator, n_out: int, n_in: int) -> Packed:
    """One matrix as nvfp4-pack-quantized."""
    codes = rng.integers(0, 16, (n_out, n_in))
    scales = rng.uniform(1, 400, (n_out, n_in // 16)).astype(ml_dtypes.float8_e4m3fn)
    overall = np.float32(rng.uniform(500, 2000))
    weight = np.empty((n_out, n_in), np.float32)
    for o in range(n_out):
        for i in range(n_in):
            value = E2M1[codes[o, i] % 8] * (-1.0 if codes[o, i] >= 8 else 1.0)
            weight[o, i] = np.float32(value) * (np.float32(scales[o, i // 16]) / overall)
    packed = codes[:, 0::2] + 16 * codes[:, 1::2]
    parts = {
        "weight_packed": packed.astype(np.uint8),
        "weight_scale": scales,
        "weight_global_scale": np.array([overall], np.float32),
    }
    return Packed(parts, weight)


def pack_folder(
    plain: Path,
    folder: Path,
    quantization: dict[str, Any],
    pack: Callable[[int, int], Packed],
    *,
    dtype: str = "float32",
) -> dict[str, Array]:
    """Write `plain` with its linear layers packed, under a config that says so; gives what every tensor means."""
    shutil.copytree(plain, folder)
    weights = load_file(folder / "model.safetensors")
    meant: dict[str, Array] = {}
    stored: dict[str, Array] = {}
    for name, weight in weights.items():
        if not name.endswith("proj.weight"):
            meant[name] = stored[name] = weight
            continue
        packed = pack(*weight.shape)
        meant[name] = packed.weight
        stored |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in packed.parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    config |= {"torch_dtype": dtype, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return meant
