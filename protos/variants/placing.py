"""Where weights lie: our names against module paths, by a model's own table (`info.weights`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from ..errors import InvalidArgument
from ..model_info import WeightInfo
from .delta import Delta
from .peft import EMBEDDINGS

__all__ = [
    "RAW",
    "by_module",
    "checkpoint_path",
    "gathered",
    "matched",
    "module_of",
    "require_shapes",
    "same_module",
    "tail_of",
]

RAW, HEAD = "module:", "lm_head"
SIDE_BY_SIDE = ("gpt2", "phi3")
"""Architectures whose merged projections give their parts one behind the other; others interleave them."""
_TAIL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[0-9]+\..+")
_MLX_GPT2 = re.compile(r"model\.(?=(h\.[0-9]+|wte|wpe|ln_f)(\.|$))")


def checkpoint_path(path: str) -> str:
    """A module's path as transformers has it: mlx-lm puts gpt2's body under `model`."""
    return _MLX_GPT2.sub("transformer.", path)


def module_of(weight: WeightInfo) -> str:
    """The path of a weight's module. A head that is the embedding's matrix has a name of its own in every library's adapters."""
    tied_head = weight.name == "w_unembed" and weight.path.rpartition(".")[2] in EMBEDDINGS
    return HEAD if tied_head else weight.path


def by_module(weights: Iterable[WeightInfo]) -> dict[str, tuple[WeightInfo, ...]]:
    """Module path → its weights in the order of its outputs: one, or the parts of a merged projection."""
    found: dict[str, tuple[WeightInfo, ...]] = {}
    for weight in weights:
        found[module_of(weight)] = (*found.get(module_of(weight), ()), weight)
    return found


def same_module(path: str, modules: Collection[str]) -> str | None:
    """The path that a model has for a module: the same, or one that is the same from the list of layers on (libraries name
    the body differently).
    """
    if path in modules:
        return path
    alike = [own for own in modules if tail_of(own) == tail_of(path)]
    return alike[0] if len(alike) == 1 else None


def matched(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo]) -> dict[str, Delta]:
    """The deltas by our names wherever one names the whole module, else by the module's path as transformers has it.

    Raises InvalidArgument for names of ours that the model does not have, with the nearest. Whether it has a module that has
    no name of ours, its own table says when it loads the variant.
    """
    names = {weight.name for weight in weights}
    modules = by_module(weights)
    found: dict[str, Delta] = {}
    for name, delta in deltas.items():
        if name not in names and not name.startswith(RAW):
            raise InvalidArgument(_missing(name, weights))
        own = name if name in names else _named(name.removeprefix(RAW), modules)
        found[own] = found[own] + delta if own in found else delta
    return found


def _named(path: str, modules: Mapping[str, tuple[WeightInfo, ...]]) -> str:
    own = same_module(path, modules)
    parts = () if own is None else modules[own]
    return parts[0].name if len(parts) == 1 else f"{RAW}{checkpoint_path(own or path)}"


def require_shapes(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo]) -> None:
    """Raise InvalidArgument for a delta whose widths are not its weight's."""
    by_name = {weight.name: weight for weight in weights}
    for name, delta in deltas.items():
        there = by_name.get(name)
        if there is not None and (delta.d_in, delta.d_out) != (there.d_in, there.d_out):
            raise InvalidArgument(
                f"the delta at {name} is of {delta.d_in} inputs and {delta.d_out} outputs; this model's weight has {there.d_in} and "
                f"{there.d_out} (a is [{there.d_in}, r], b is [r, {there.d_out}])"
            )


def gathered(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo], architecture: str) -> dict[str, Delta] | None:
    """The deltas by module path, parts of one module put together.

    None where a name's path is not known, and for parts of a module whose outputs lie in another order in this architecture.
    """
    modules = by_module(weights)
    paths = {weight.name: module_of(weight) for weight in weights}
    found: dict[str, Delta] = {}
    for name, delta in deltas.items():
        path = name.removeprefix(RAW) if name.startswith(RAW) else paths.get(name)
        if path is None:
            return None
        parts = () if name.startswith(RAW) else modules[path]
        if len(parts) > 1 and architecture not in SIDE_BY_SIDE:
            return None
        whole = _widened(delta, name, parts) if len(parts) > 1 else delta
        found[path] = _joined(found[path], whole) if path in found else whole
    return found


def tail_of(path: str) -> str:
    """From the list of layers on (`layers.3.mlp.up_proj`); outside layers the last name."""
    found = _TAIL.search(path)
    return found[0] if found else path.rpartition(".")[2]


def _missing(name: str, weights: Sequence[WeightInfo]) -> str:
    near = get_close_matches(name, [weight.name for weight in weights], n=3, cutoff=0.4)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return f"this model takes no delta at {name}{hint}; client.describe().weights lists those that it takes"


def _widened(delta: Delta, name: str, parts: tuple[WeightInfo, ...]) -> Delta:
    """A part's delta as one of the whole module, which leaves the other parts alone."""
    start = sum(part.d_out for part in parts[: [part.name for part in parts].index(name)])
    total = sum(part.d_out for part in parts)
    b = np.zeros((delta.rank, total), np.float32)
    b[:, start : start + delta.d_out] = delta.b
    bias = None if delta.bias is None else np.zeros(total, np.float32)
    if bias is not None:
        bias[start : start + delta.d_out] = delta.bias
    return Delta(delta.a, b, bias)


def _joined(one: Delta, other: Delta) -> Delta:
    """Two deltas of one module; where they read the same, at the rank of one."""
    if not np.array_equal(one.a, other.a):
        return one + other
    both = one + other
    return Delta(one.a, one.b + other.b, both.bias)
