"""AWQ in AutoAWQ's GEMM layout: codes packed along the outputs, eight to a word in the order its kernel reads them.

As AutoAWQ documents it: `qweight` int32 [in, out/8], `qzeros` int32 [in/group, out/8], `scales` [in/group, out], 4 bits;
field i of a word holds output 8·word + (0, 2, 4, 6, 1, 3, 5, 7)[i]; weight[in, out] = scale·(code − zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from .bit_fields import unpacked
from .source import FLOATS, NUMPY, Planned, Tensors, copied, refuse_left_over

__all__ = ["awq_plan"]

_PARTS = ("qweight", "qzeros", "scales")
_PER_WORD = 8
_FIELD_OF_OUTPUT = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Which field of a word holds output 0 … 7 of it."""
_BLOCK = 1024
"""Inputs that are worked on at once."""


def awq_plan(
    source: Tensors, quantization: Mapping[str, Any], dtype: str, *, keep: str, transposed: bool
) -> list[Planned]:
    """Tensors of the plain folder; arguments as those of `gptq_plan`. Raises InvalidArgument and Unsupported."""
    size = _group_size(quantization)
    names = [name.removesuffix(".qweight") for name in source.stored if name.endswith(".qweight")]
    if not names:
        raise InvalidArgument(
            "config.json says that the weights are packed by AWQ, and no tensor is (none is named ….qweight); "
            "remove quantization_config if they are plain"
        )
    for name in names:
        _check(source, name, size)
    parts = {f"{name}.{part}" for name in names for part in _PARTS}
    refuse_left_over([name for name in source.stored if name not in parts])
    plan = [copied(source, name, keep) for name in source.stored if name not in parts]
    return plan + [_planned(source, name, size, dtype, transposed) for name in names]


def _group_size(quantization: Mapping[str, Any]) -> int:
    """Inputs that share a scale; −1: all."""
    layout = str(
        quantization.get("version") or quantization.get("checkpoint_format") or quantization.get("format") or "gemm"
    ).lower()
    if layout != "gemm":
        raise Unsupported(f"the weights are packed by AWQ in the layout {layout!r}; gemm can be read")
    bits = quantization.get("bits", quantization.get("w_bit", 4))
    if bits != 4:
        raise Unsupported(f"the weights are packed by AWQ with {bits!r} bits; 4 can be read")
    zero_point = quantization.get("zero_point", True) and not quantization.get("sym", False)
    if not zero_point:
        raise Unsupported("the weights are packed by AWQ without zero points; those with zero points can be read")
    return int(quantization.get("group_size", quantization.get("q_group_size", 128)))


def _check(source: Tensors, name: str, size: int) -> None:
    if f"{name}.weight" in source.stored:
        raise InvalidArgument(f"{name} is there packed (.qweight) and plain (.weight); keep one of them")
    qweight = source.stored[f"{name}.qweight"]
    if len(qweight.shape) != 2:
        raise InvalidArgument(f"{name}.qweight has shape {list(qweight.shape)}; AWQ packs matrices, [in, out/8]")
    n_in, n_words = qweight.shape
    n_groups = 1 if size < 0 else -(-n_in // size)
    expected = {
        "qweight": ("I32", (n_in, n_words)),
        "qzeros": ("I32", (n_groups, n_words)),
        "scales": (None, (n_groups, n_words * _PER_WORD)),
    }
    for part, (dtype, shape) in expected.items():
        found = source.stored.get(f"{name}.{part}")
        if found is None:
            raise InvalidArgument(f"{name}.{part} is missing, and {name}.qweight cannot be read without it")
        if found.shape != shape or found.dtype != (dtype or found.dtype):
            raise InvalidArgument(
                f"{name}.{part} is {found.dtype} of shape {list(found.shape)}, and 4 bits in groups of {size} (AWQ, gemm, as "
                f"config.json says) make {list(shape)} beside a qweight of {list(qweight.shape)}; take the config.json that "
                "came with them"
            )


def _planned(source: Tensors, name: str, size: int, dtype: str, transposed: bool) -> Planned:
    n_in, n_words = source.stored[f"{name}.qweight"].shape
    n_out, kind = n_words * _PER_WORD, FLOATS[dtype]

    def make() -> Array:
        qweight = source.get(f"{name}.qweight")
        scales = source.get(f"{name}.scales").astype(np.float32)
        zeros = _outputs(source.get(f"{name}.qzeros"))
        weight = np.empty((n_in, n_out), NUMPY[kind])
        with np.errstate(over="ignore"):  # whoever writes it looks for what a dtype does not hold
            for start in range(0, n_in, _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, n_in))
                groups = np.zeros_like(rows) if size < 0 else rows // size
                codes = _outputs(qweight[rows])
                weight[rows] = (scales[groups] * (codes - zeros[groups])).astype(weight.dtype)
        return weight if transposed else np.ascontiguousarray(weight.T)

    return Planned(f"{name}.weight", kind, (n_in, n_out) if transposed else (n_out, n_in), make)


def _outputs(words: Array) -> Array:
    """float32 [row, out] of words [row, out/8]."""
    fields = unpacked(np.ascontiguousarray(words.T), 4, words.shape[1] * _PER_WORD).T
    in_order = fields.reshape(len(words), -1, _PER_WORD)[:, :, _FIELD_OF_OUTPUT]
    return in_order.reshape(len(words), -1).astype(np.float32)
