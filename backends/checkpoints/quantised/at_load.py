"""`--quantize`: which layers of a plain checkpoint are held in few bits, and what is told of it.

Both backends hold the same numbers: per group of 64 inputs (32 where a width needs it) a scale and an offset, as
mlx.core.quantize defines them. Embeddings, the output head and routers stay as they are, as with other tools.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ....protos.errors import FailedPrecondition, InvalidArgument, Unsupported
from ....protos.tensors import Array
from .scheme import Scheme

__all__ = [
    "QUANTIZE",
    "AtLoad",
    "bits_of",
    "bytes_of",
    "check_plain",
    "group_of",
    "hash_as_held",
    "is_layer",
    "quantised_id",
    "told",
    "told_of",
    "values_as_held",
]

QUANTIZE = {"int8": 8, "int4": 4}
"""What a load may ask for → bits of a weight."""
_GROUPS = (64, 32)
_IN_A_LAYER = re.compile(r"(?:^|\.)([a-z_]+\.\d+\.[\w.]+)$")
_ROUTERS = ("router", "gate", "shared_expert_gate")


@dataclass(frozen=True, slots=True)
class AtLoad:
    """What was done to a model."""

    names: frozenset[str]
    """Of the quantised layers' weights, from the list of layers on: `layers.0.mlp.down_proj.weight`."""
    told: str


def bits_of(quantize: str) -> int:
    """Raises InvalidArgument for what there is not."""
    if quantize not in QUANTIZE:
        raise InvalidArgument(f"unknown quantize {quantize!r}; allowed: {', '.join(QUANTIZE)}, or leave it out")
    return QUANTIZE[quantize]


def quantised_id(name: str, quantize: str) -> str:
    """What a model is served under where its load gives it no name."""
    return f"{name}-{quantize}" if quantize else name


def hash_as_held(model_hash: str, quantize: str) -> str:
    """The hash of weights that were quantised at load: they are others than the checkpoint's."""
    return hashlib.sha256(f"{model_hash} {quantize}".encode()).hexdigest() if quantize and model_hash else model_hash


def bytes_of(name: str, shape: Sequence[int], quantize: str, itemsize: int) -> int:
    """That a weight takes once it is quantised, where it is; else as floats of `itemsize`."""
    n_bits, path = math.prod(shape) * 8 * itemsize, name.removesuffix(".weight")
    group = group_of(shape[-1]) if shape else None
    if quantize and group and path != name and len(shape) == 2 and is_layer(path, shape[-1]):
        n_bits = math.prod(shape) * bits_of(quantize) + math.prod(shape) // group * 16 * itemsize
    return n_bits // 8


def check_plain(scheme: Scheme | None, quantize: str) -> None:
    """Raise FailedPrecondition for a checkpoint that is quantised already: twice rounded is neither."""
    if scheme is not None and quantize:
        raise FailedPrecondition(
            f"quantize {quantize} is for plain checkpoints, and this one is quantised already ({scheme.told('')}); leave it out"
        )


def group_of(n_in: int) -> int | None:
    """How many neighbours share a scale; None for a width that no group divides."""
    return next((group for group in _GROUPS if n_in % group == 0), None)


def is_layer(path: str, n_in: int) -> bool:
    """Whether the linear module at a path is quantised."""
    inside = _IN_A_LAYER.search(path)
    return inside is not None and path.rpartition(".")[2] not in _ROUTERS and group_of(n_in) is not None


def told(quantize: str, done: Iterable[str], skipped: Iterable[str]) -> AtLoad:
    """Raises FailedPrecondition where nothing was quantised."""
    names, left = [f"{_tail(path)}.weight" for path in done], sorted({path.rpartition(".")[2] for path in skipped})
    if not names:
        raise FailedPrecondition(f"quantize {quantize} finds no layer to quantise in this model; leave it out")
    also = f", {', '.join(left)}" if left else ""
    text = f"{quantize} at load, {len(names)} weights in groups of 64; embeddings, output head{also} as they are"
    return AtLoad(frozenset(names), text)


def told_of(backend: str, scheme: Scheme | None, at_load: AtLoad | None) -> str:
    """What Describe says of a model's weights; empty for plain ones."""
    if at_load is not None:
        return at_load.told
    return scheme.told(backend) if scheme is not None else ""


def values_as_held(at_load: AtLoad, name: str, value: Array, held: Callable[[str], Array]) -> Array:
    """What a model computes with in a weight's place. `held` gives a quantised weight [out, in] by the end of its name.

    Raises Unsupported for one that the backend keeps in other pieces than the checkpoint.
    """
    tail = _tail(name)
    if tail not in at_load.names:
        if ".experts." in name and any(".experts." in one for one in at_load.names):
            raise Unsupported(f"weight {name!r} was quantised at load in other pieces; load the model without quantize")
        return value
    found = held(tail)
    turned = found.T
    if found.shape != value.shape or (
        turned.shape == value.shape and np.abs(turned - value).mean() < np.abs(found - value).mean()
    ):
        found = turned  # a checkpoint that has inputs first, as gpt2's
    return np.ascontiguousarray(found)


def _tail(path: str) -> str:
    inside = _IN_A_LAYER.search(path)
    return inside.group(1) if inside else path
