"""The weights of one model that take deltas: their names, the modules that hold them, and which part of what these give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from weakref import WeakValueDictionary

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.model_info import WeightInfo
from ...protos.tensors import Array
from ...protos.variants.placing import same_module
from ...protos.variants.variant import Variant
from ..hooks.points import PROBE_BATCH, PROBE_LENGTHS, Seen
from .factors import EMBED, UNEMBED, BoundVariant, Factors

__all__ = ["Linear", "Weight", "WeightTable", "linear_of"]

MAX_RANK = 512
"""Of what a variant adds to one weight."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A module that multiplies rows by a weight: [d_in] to [d_out]."""

    path: str
    d_in: int
    d_out: int
    bias: bool = False
    scale: float = 1.0
    """Of the embedding: how many times its weight's rows it gives."""


def linear_of(path: str, seen: Mapping[tuple[str, str], Seen], *, bias: bool) -> Linear | None:
    """A module that is linear, where two forwards showed that its rows are the tokens': of each batch, or one behind the other."""
    sides = [seen.get((path, side)) for side in ("input", "output")]
    widths: list[int] = []
    for one in sides:
        if one is None or one.calls != [1, 1]:
            return None
        found = {
            shape[-1]
            for shape, n in zip(one.shapes, PROBE_LENGTHS, strict=True)
            if shape[:-1] in ((PROBE_BATCH, n), (PROBE_BATCH * n,))
        }
        if len(found) != 1 or len(one.shapes) != len(PROBE_LENGTHS):
            return None
        widths.append(found.pop())
    return Linear(path, widths[0], widths[1], bias)


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A named weight: a module's, or some columns of what it gives."""

    name: str
    linear: Linear
    columns: Array | None = None
    """Ascending or not, in the order of the weight's own; None: all."""

    @property
    def d_out(self) -> int:
        """Of the named part."""
        return self.linear.d_out if self.columns is None else len(self.columns)

    @property
    def info(self) -> WeightInfo:
        """As Describe says it."""
        note = "" if self.columns is None else "a part of what the module gives"
        return WeightInfo(self.name, self.linear.path, self.linear.d_in, self.d_out, self.linear.bias, note)

    @property
    def key(self) -> str:
        """What its factors stand under."""
        return self.name if self.name in (EMBED, UNEMBED) else self.linear.path


@dataclass(frozen=True, slots=True)
class WeightTable:
    """All of one model."""

    named: Mapping[str, Weight] = field(default_factory=dict[str, Weight])
    modules: Mapping[str, Weight] = field(default_factory=dict[str, Weight])
    """Module path → its weight as a whole, where its rows are the tokens'."""
    largest: float = float(np.finfo(np.float32).max)
    """That the model's dtype holds."""
    why_not: str = ""
    """Why there are none."""
    bound: WeakValueDictionary[str, BoundVariant] = field(default_factory=WeakValueDictionary[str, BoundVariant])
    """By hash, those that something runs with."""

    @property
    def infos(self) -> tuple[WeightInfo, ...]:
        """As Describe says them."""
        return tuple(weight.info for weight in self.named.values())

    def find(self, name: str) -> Weight:
        """A weight by name or `module:<path>`. Raises InvalidArgument with the nearest there are."""
        kind, _, path = name.partition(":")
        found = self.modules.get(same_module(path, self.modules) or "") if kind == "module" else self.named.get(name)
        if found is not None:
            return found
        if kind == "module":
            near = get_close_matches(path, self.modules, 3) or list(self.modules)[:3]
            raise InvalidArgument(
                f"{name}: this model has no linear module there whose rows are the tokens'; for example "
                f"{', '.join(f'module:{one}' for one in near)}. Experts, routers, norms and convolutions take no deltas"
            )
        near = get_close_matches(name, self.named, 3) or list(self.named)[:3]
        said = (
            f"for example {', '.join(near)}" if near else self.why_not or "it has none with a name; use module:<path>"
        )
        raise InvalidArgument(f"{name}: this model offers no such weight; {said} (describe().weights lists them)")

    def bind(self, variant: Variant) -> BoundVariant:
        """A variant's deltas as factors of whole modules. Raises InvalidArgument for what does not fit this model."""
        if (known := self.bound.get(variant.hash)) is not None:
            return known
        found: dict[str, list[tuple[Weight, str]]] = {}
        for name in variant.deltas:
            weight = self.find(name)
            _check(variant, name, weight)
            found.setdefault(weight.key, []).append((weight, name))
        factors = {key: _joined(variant, parts) for key, parts in found.items()}
        for key, one in factors.items():
            if one.a.shape[1] > MAX_RANK * max(1, len(found[key])):
                raise _too_large(", ".join(name for _, name in found[key]), one.a.shape[1])
            if (
                max(float(np.abs(array).max()) for array in (one.a, one.b, one.bias) if array is not None)
                > self.largest
            ):
                raise InvalidArgument(
                    f"the delta at {', '.join(name for _, name in found[key])} has numbers beyond the model's dtype, which holds "
                    f"{self.largest:.4g}; balance its factors (variant.compressed(energy=1.0)), or load the model in float32"
                )
        made = BoundVariant(variant.hash, factors)
        self.bound[variant.hash] = made
        return made


def _check(variant: Variant, name: str, weight: Weight) -> None:
    delta = variant.deltas[name]
    if (delta.d_in, delta.d_out) != (weight.linear.d_in, weight.d_out):
        raise InvalidArgument(
            f"the delta at {name} is {delta.d_in} → {delta.d_out}, and this model's weight is {weight.linear.d_in} → "
            f"{weight.d_out} ({weight.linear.path}); it was made for another model"
        )
    if delta.rank > MAX_RANK:
        raise _too_large(name, delta.rank)


def _too_large(name: str, rank: int) -> InvalidArgument:
    return InvalidArgument(
        f"the delta at {name} has rank {rank}, the limit is {MAX_RANK}; compress it (variant.compressed(rank=…)), or merge it "
        "and load the result as a model"
    )


def _joined(variant: Variant, parts: Iterable[tuple[Weight, str]]) -> Factors:
    """Deltas at parts of one module, side by side, each as wide as the module."""
    parts = list(parts)
    weight, name = parts[0]
    if len(parts) == 1 and weight.columns is None and weight.linear.scale == 1.0:
        delta = variant.deltas[name]
        return Factors(delta.a, delta.b, delta.bias)
    a, b = list[Array](), list[Array]()
    bias: Array | None = None
    for weight, name in parts:
        delta, width = variant.deltas[name], weight.linear.d_out
        at = slice(None) if weight.columns is None else weight.columns
        wide = np.zeros((delta.rank, width), dtype=np.float32)
        wide[:, at] = delta.b * np.float32(weight.linear.scale)
        a.append(delta.a)
        b.append(wide)
        if delta.bias is not None:
            bias = np.zeros(width, dtype=np.float32) if bias is None else bias
            bias[at] += delta.bias * np.float32(weight.linear.scale)
    return Factors(np.concatenate(a, axis=1), np.concatenate(b), bias)
