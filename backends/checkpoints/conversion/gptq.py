"""GPTQ: codes packed down the inputs, a scale and a zero for each group of inputs and each output.

The format as AutoGPTQ and GPTQModel document it: `qweight` int32 [in·bits/32, out], `qzeros` int32 [group, out·bits/32],
`scales` [group, out], `g_idx` int32 [in], the group of each input; weight[in, out] = scale·(code − zero). Under
`checkpoint_format` "gptq" what is stored is zero − 1 (GPTQModel's docs name the word arithmetic), under "gptq_v2" the zero itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from .bit_fields import unpacked, words_for
from .source import FLOATS, NUMPY, Planned, Stored, Tensors, copied, refuse_left_over

__all__ = ["gptq_plan"]

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = (2, 3, 4, 8)
_LAYOUTS = ("checkpoint_format", "format")
"""Where a config names the layout; the first that does counts."""
_BLOCK = 1024
"""Inputs that are worked on at once, so that no second float copy of a whole matrix is made."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """One packed matrix."""

    name: str
    bits: int
    n_in: int
    n_out: int
    group_size: int
    first_format: bool
    """Zeros are stored less one."""


def gptq_plan(
    source: Tensors, quantization: Mapping[str, Any], dtype: str, *, keep: str, transposed: bool
) -> list[Planned]:
    """Tensors of the plain folder. `dtype`: of the matrices; `keep`: of what is not packed ("auto": as it is).

    `transposed`: the library stores its matrices [in, out]. Raises InvalidArgument and Unsupported.
    """
    first_format = _first_format(quantization)
    names = [name.removesuffix(".qweight") for name in source.stored if name.endswith(".qweight")]
    if not names:
        raise InvalidArgument(
            "config.json says that the weights are packed by GPTQ, and no tensor is (none is named ….qweight); "
            "remove quantization_config if they are plain"
        )
    linears = [_linear(source, name, quantization, first_format) for name in names]
    parts = {f"{name}.{part}" for name in names for part in _PARTS}
    if twice := [name for name in names if f"{name}.weight" in source.stored]:
        raise InvalidArgument(f"{twice[0]} is there packed (.qweight) and plain (.weight); keep one of them")
    gone = parts | _empty_biases(source, names)
    refuse_left_over([name for name in source.stored if name not in gone])
    plan = [copied(source, name, keep) for name in source.stored if name not in gone]
    return plan + [_planned(source, linear, dtype, transposed) for linear in linears]


def _empty_biases(source: Tensors, names: list[str]) -> set[str]:
    """Biases that AutoGPTQ wrote for every matrix, of zeros where the architecture has none.

    A kind of matrix (the name without the layer) whose biases are zero in all layers has none. Files in which some packed
    matrix has no bias were not written so, and keep theirs.
    """
    biases = [f"{name}.bias" for name in names]
    if not all(name in source.stored for name in biases):
        return set()
    alive = {_kind(name) for name in biases if np.any(source.get(name))}
    return {name for name in biases if _kind(name) not in alive}


def _kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".", name)


def _first_format(quantization: Mapping[str, Any]) -> bool:
    written = next((quantization[name] for name in _LAYOUTS if quantization.get(name) is not None), "gptq")
    if quantization.get("is_marlin_format"):
        written = "marlin"
    if written not in ("gptq", "gptq_v2"):
        raise Unsupported(
            f"the weights are packed by GPTQ in the layout {written!r}; gptq and gptq_v2 can be read (GPTQModel converts others)"
        )
    if str(quantization.get("pack_dtype", "int32")) != "int32":
        raise Unsupported(f"the weights are packed by GPTQ into {quantization['pack_dtype']}; int32 words can be read")
    return written == "gptq"


def _linear(source: Tensors, name: str, quantization: Mapping[str, Any], first_format: bool) -> _Linear:
    """Sizes from the tensors, checked against one another and against what the config says."""
    qweight, _, scales = (_part(source, name, part) for part in _PARTS[:3])
    n_groups, n_out = scales.shape
    group = int(quantization.get("group_size") or -1)
    index = source.stored.get(f"{name}.g_idx")
    said = quantization.get("bits")
    if index is not None:
        n_in = index.shape[0]
        fits = [b for b in _BITS if words_for(n_in, b) == qweight.shape[0]]
        bits = fits[0] if fits else said
    else:
        bits = said
        n_in = qweight.shape[0] * 32 // bits if bits in _BITS else 0
    if bits not in _BITS:
        raise Unsupported(f"{name} is packed with {bits} bits a weight; {', '.join(map(str, _BITS))} can be read")
    own = bool(quantization.get("dynamic"))  # matrices may have settings of their own
    if said != bits and not own:
        raise InvalidArgument(
            f"config.json says that the weights have {said} bits (GPTQ), and {name} is packed with {bits}; "
            "take the config.json that came with them"
        )
    size = n_in if group < 0 else group
    if index is None and quantization.get("desc_act"):
        raise InvalidArgument(
            f"config.json says that inputs are grouped in order of activation (desc_act), and {name}.g_idx, which says how, "
            "is missing; fetch it again"
        )
    if n_in * bits % 32:
        raise InvalidArgument(f"{name} has {n_in} inputs of {bits} bits, which fill no whole words; fetch it again")
    expected = {
        "qweight": (words_for(n_in, bits), n_out),
        "qzeros": (n_groups, words_for(n_out, bits)),
        "scales": (n_groups if own else -(-n_in // size), n_out),
    }
    for part, shape in expected.items():
        if (found := source.stored[f"{name}.{part}"].shape) != shape:
            raise InvalidArgument(
                f"{name}.{part} has shape {list(found)}, and {bits} bits in groups of {size} (GPTQ, as config.json says) make "
                f"{list(shape)}; take the config.json that came with them"
            )
    if own:
        size = -(-n_in // n_groups)
    return _Linear(name, bits, n_in, n_out, size, first_format)


def _part(source: Tensors, name: str, part: str) -> Stored:
    stored = source.stored.get(f"{name}.{part}")
    if stored is None or len(stored.shape) != 2:
        found = "is missing" if stored is None else f"has shape {list(stored.shape)}"
        raise InvalidArgument(f"{name}.{part} {found}, and {name}.qweight cannot be read without it")
    if part != "scales" and stored.dtype != "I32":
        raise InvalidArgument(f"{name}.{part} is stored as {stored.dtype}; GPTQ packs into I32")
    return stored


def _planned(source: Tensors, linear: _Linear, dtype: str, transposed: bool) -> Planned:
    shape = (linear.n_in, linear.n_out) if transposed else (linear.n_out, linear.n_in)
    kind = FLOATS[dtype]

    def make() -> Array:
        weight = np.empty((linear.n_in, linear.n_out), NUMPY[kind])
        _fill(source, linear, weight)
        return weight if transposed else np.ascontiguousarray(weight.T)

    return Planned(f"{linear.name}.weight", kind, shape, make)


def _fill(source: Tensors, linear: _Linear, weight: Array) -> None:
    """Write scale·(code − zero) into [in, out]."""
    name = linear.name
    codes = unpacked(source.get(f"{name}.qweight"), linear.bits, linear.n_in)
    scales = source.get(f"{name}.scales").astype(np.float32)
    zeros = _zeros(source.get(f"{name}.qzeros"), linear).astype(np.float32)
    groups = _groups(source, linear, len(scales))
    with np.errstate(over="ignore"):  # whoever writes it looks for what a dtype does not hold
        for start in range(0, linear.n_in, _BLOCK):
            rows = slice(start, start + _BLOCK)
            weight[rows] = (scales[groups[rows]] * (codes[rows] - zeros[groups[rows]])).astype(weight.dtype)


def _groups(source: Tensors, linear: _Linear, n_groups: int) -> Array:
    """The group of each input."""
    if f"{linear.name}.g_idx" not in source.stored:
        return np.arange(linear.n_in) // linear.group_size
    groups = source.get(f"{linear.name}.g_idx")
    if groups.min(initial=0) < 0 or groups.max(initial=0) >= n_groups:
        raise InvalidArgument(f"{linear.name}.g_idx names groups outside 0 … {n_groups - 1}, which are all there are")
    return groups


def _zeros(words: Array, linear: _Linear) -> Array:
    """[group, out], brought back by the one that the first format takes away."""
    bits = linear.bits
    if linear.first_format and 32 % bits == 0:
        # One is taken from every field by a subtraction of whole words, borrows included: adding it back undoes that.
        ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
        words = (words.view(np.uint32) + ones).view(np.int32)
    zeros = unpacked(np.ascontiguousarray(words.T), bits, linear.n_out).T
    if linear.first_format and 32 % bits != 0:
        zeros = (zeros + 1) & ((1 << bits) - 1)
    return zeros
