"""Where weights lie: our names against module paths, by a model's own table (`info.weights`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np

from ..errors import InvalidArgument
from ..model_info import WeightInfo
from .delta import Delta

__all__ = ["RAW", "by_module", "checkpoint_path", "gathered", "matched", "require_shapes", "tail_of"]

RAW = "module:"
_TAIL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.[0-9]+\..+")
_MLX_GPT2 = re.compile(r"model\.(?=(h\.[0-9]+|wte|wpe|ln_f)(\.|$))")


def checkpoint_path(path: str) -> str:
    """A module's path as transformers has it: mlx-lm puts gpt2's body under `model`."""
    return _MLX_GPT2.sub("transformer.", path)


def by_module(weights: Iterable[WeightInfo]) -> dict[str, tuple[WeightInfo, ...]]:
    """Module path → its weights in the order of its outputs: one, or the parts of a merged projection."""
    found: dict[str, tuple[WeightInfo, ...]] = {}
    for weight in weights:
        found[weight.path] = (*found.get(weight.path, ()), weight)
    return found


def matched(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo]) -> dict[str, Delta]:
    """The deltas by our names wherever the table has the module; parts of merged projections become one delta each.

    Raises InvalidArgument for modules and names that the model does not have, with the nearest that it has.
    """
    names = {weight.name for weight in weights}
    modules = by_module(weights)
    found: dict[str, Delta] = {}
    for name, delta in deltas.items():
        parts = {name: delta} if name in names else _parts(name, delta, modules)
        if parts is None:
            raise InvalidArgument(_missing(name, weights))
        for part, own in parts.items():
            found[part] = found[part] + own if part in found else own
    return found


def require_shapes(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo]) -> None:
    """Raise InvalidArgument for a delta whose widths are not its weight's."""
    by_name = {weight.name: weight for weight in weights}
    for name, delta in deltas.items():
        there = by_name[name]
        if (delta.d_in, delta.d_out) != (there.d_in, there.d_out):
            raise InvalidArgument(
                f"the delta at {name} is of {delta.d_in} inputs and {delta.d_out} outputs; this model's weight has {there.d_in} and "
                f"{there.d_out} (a is [{there.d_in}, r], b is [r, {there.d_out}])"
            )


def gathered(deltas: Mapping[str, Delta], weights: Sequence[WeightInfo]) -> dict[str, Delta] | None:
    """The deltas by module path, parts of one module put together; None where a name's path is not known."""
    modules = by_module(weights)
    paths = {weight.name: weight.path for weight in weights}
    found: dict[str, Delta] = {}
    for name, delta in deltas.items():
        path = name.removeprefix(RAW) if name.startswith(RAW) else paths.get(name)
        if path is None:
            return None
        whole = delta if name.startswith(RAW) else _widened(delta, name, modules[path])
        found[path] = _joined(found[path], whole) if path in found else whole
    return found


def _parts(name: str, delta: Delta, modules: Mapping[str, tuple[WeightInfo, ...]]) -> dict[str, Delta] | None:
    """A module's delta as those of its named parts; None where the model has no such module."""
    if not name.startswith(RAW):
        return None
    parts = _module(name.removeprefix(RAW), modules)
    if parts is None:
        return None
    if len(parts) == 1 or delta.d_out != sum(part.d_out for part in parts):
        return {parts[0].name: delta} if len(parts) == 1 else None
    cut: dict[str, Delta] = {}
    start = 0
    for part in parts:
        own = _cut(delta, start, start + part.d_out)
        if own is not None:
            cut[part.name] = own
        start += part.d_out
    return cut


def _cut(delta: Delta, start: int, stop: int) -> Delta | None:
    """What a delta does to some of the outputs; None for nothing."""
    b = delta.b[:, start:stop]
    bias = None if delta.bias is None else delta.bias[start:stop]
    used = np.array(b.any(axis=1))
    if not used.any():
        if bias is None or not bias.any():
            return None
        used[0] = True
    return Delta(delta.a[:, used], b[used], None if bias is None or not bias.any() else bias)


def _module(path: str, modules: Mapping[str, tuple[WeightInfo, ...]]) -> tuple[WeightInfo, ...] | None:
    """The parts of a module, found by its path, or by what follows the model's body in it (libraries name that differently)."""
    if path in modules:
        return modules[path]
    tail = tail_of(path)
    alike = [parts for own, parts in modules.items() if tail_of(own) == tail]
    return alike[0] if len(alike) == 1 else None


def tail_of(path: str) -> str:
    """From the list of layers on (`layers.3.mlp.up_proj`); outside layers the last name."""
    found = _TAIL.search(path)
    return found[0] if found else path.rpartition(".")[2]


def _missing(name: str, weights: Sequence[WeightInfo]) -> str:
    raw = name.startswith(RAW)
    known = [RAW + weight.path if raw else weight.name for weight in weights]
    near = get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.4)
    hint = f"; the nearest are {', '.join(near)}" if near else ""
    return f"this model takes no delta at {name}{hint}; client.describe().weights lists those that it takes"


def _widened(delta: Delta, name: str, parts: tuple[WeightInfo, ...]) -> Delta:
    """A part's delta as one of the whole module, which leaves the other parts alone."""
    if len(parts) == 1:
        return delta
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
