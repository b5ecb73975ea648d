"""Which weights of a loaded model take deltas: by the site table that was proven, and q, k and v by trial on the model.

A weight that feeds q must change q and nothing else, in the head that its columns are of. A merged projection (qkv_proj,
c_attn, query_key_value) is tried in each way in which models are known to lay theirs out; what no way explains has no name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...protos.errors import ProbewireError
from ...protos.spec import Capture, Hook, Plan
from ...protos.tensors import Array
from ..hooks.base import Backend
from ..hooks.plan import bind
from ..hooks.sequence import Sequence
from ..model.sites import Family, Tap
from .factors import EMBED, UNEMBED, BoundUse, BoundVariant, Factors
from .weight_table import Linear, Weight, WeightTable

__all__ = ["offer_weights"]

_INSIDE = ("q", "k", "v")
_TOKENS = [1, 2, 3]
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
_PROBE = 16.0
"""Added to one column of what a module gives: large beside any value, so that rounding does not swallow it."""


@dataclass(frozen=True, slots=True)
class _Heads:
    """How wide q, k and v of a layer are."""

    n: dict[str, int]
    d: dict[str, int]

    def width(self, name: str) -> int:
        """All heads of one."""
        return self.n[name] * self.d[name]

    @property
    def total(self) -> int:
        """All three."""
        return sum(self.width(name) for name in _INSIDE)


def offer_weights(backend: Backend) -> None:
    """Find them, let their modules add deltas, and say so in `info.weights`."""
    linears = backend.take_deltas()
    ends = {linears[key].path: key for key in (UNEMBED, EMBED) if key in linears}
    modules = {path: Weight(f"module:{path}", one) for path, one in linears.items() if path not in (EMBED, UNEMBED)}
    modules |= {path: Weight(key, linears[key]) for path, key in ends.items()}
    named = _named(backend, linears)
    largest = _LARGEST.get(backend.info.dtype, float(np.finfo(np.float32).max))
    backend.weight_table = WeightTable(named, modules, largest, "" if named else "how it is built is not known")
    backend.info = replace(backend.info, weights=backend.weight_table.infos)


def _named(backend: Backend, linears: Mapping[str, Linear]) -> dict[str, Weight]:
    family, found = backend.points.family, dict[str, Weight]()
    for layer in range(backend.info.n_layers if family is not None else 0):
        assert family is not None
        for name, weight in _of_layer(backend, family, layer, linears, found):
            found[f"{name}.{layer}"] = replace(weight, name=f"{name}.{layer}")
    order = {name: i for i, name in enumerate(("w_q", "w_k", "w_v", "w_o", "w_gate", "w_up", "w_down"))}
    rest = sorted(found, key=lambda name: (int(name.partition(".")[2]), order[name.partition(".")[0]]))
    ends = {key: Weight(key, linears[key]) for key in (EMBED, UNEMBED) if key in linears}
    return {**{name: found[name] for name in rest}, **ends}


def _of_layer(
    backend: Backend, family: Family, layer: int, linears: Mapping[str, Linear], earlier: Mapping[str, Weight]
) -> Iterator[tuple[str, Weight]]:
    base = family.layer_path(backend.info.backend, layer)

    def at(name: str, side: str) -> tuple[Linear, Tap] | None:
        """The linear module that reads or gives a site."""
        if name not in family.taps or not family.has(name, layer):
            return None
        tap = family.tap(name, layer)
        linear = linears.get(f"{base}.{tap.path}" if tap.path else base)
        return None if linear is None or tap.side != side else (linear, tap)

    for name, site in (("w_o", "z"), ("w_down", "mlp_act")):
        if (found := at(site, "input")) is not None:
            yield name, Weight(name, found[0])
    gated = "mlp_up" in family.taps and family.has("mlp_up", layer)
    for name, site in (("w_gate", "mlp_gate"), ("w_up", "mlp_up")) if gated else (("w_up", "mlp_gate"),):
        if (found := at(site, "output")) is not None:
            linear, tap = found
            columns = None if tap.part is None else _slice(linear.d_out, *tap.part)
            yield name, Weight(name, linear, columns)
    if family.heads and all(backend.info.site(name) is not None and family.has(name, layer) for name in _INSIDE):
        yield from _attention(backend, f"{base}.{family.attention}", layer, linears, earlier)


def _slice(width: int, part: int, n: int) -> Array:
    size = width // n
    return np.arange(part * size, (part + 1) * size)


def _attention(
    backend: Backend, path: str, layer: int, linears: Mapping[str, Linear], earlier: Mapping[str, Weight]
) -> Iterator[tuple[str, Weight]]:
    """q, k and v: as an earlier layer has them, where the modules are alike; else as trial shows."""
    inside = {one: linear for one, linear in linears.items() if one.startswith(f"{path}.")}
    heads = _heads(backend, layer)
    for name in _INSIDE:
        like = _like_earlier(name, path, inside, heads, earlier)
        if like is not None:
            yield f"w_{name}", like
            continue
        for linear, columns in _ways(name, heads, inside.values()):
            if _feeds(backend, layer, name, linear, columns, heads):
                yield f"w_{name}", Weight(f"w_{name}", linear, columns)
                break


def _heads(backend: Backend, layer: int) -> _Heads:
    n, d = dict[str, int](), dict[str, int]()
    for name in _INSIDE:
        info = backend.info.site(name)
        assert info is not None
        n[name], d[name] = info.at(layer)
    return _Heads(n, d)


def _like_earlier(
    name: str, path: str, inside: Mapping[str, Linear], heads: _Heads, earlier: Mapping[str, Weight]
) -> Weight | None:
    """The module of the same name below attention, of the same sizes, as an earlier layer's trial has shown it."""
    for found, weight in earlier.items():
        if not found.startswith(f"w_{name}.") or weight.d_out != heads.width(name):
            continue
        tail = weight.linear.path.rpartition(".")[2]
        same = inside.get(f"{path}.{tail}")
        if same is not None and (same.d_in, same.d_out) == (weight.linear.d_in, weight.linear.d_out):
            return replace(weight, linear=same)
    return None


def _ways(name: str, heads: _Heads, linears: Iterable[Linear]) -> Iterator[tuple[Linear, Array | None]]:
    """Modules, and parts of modules, that may give what becomes q, k or v; a module of its own first, and one of its name."""
    linears = sorted(linears, key=lambda one: not one.path.rpartition(".")[2].startswith(name))  # fewer trials
    for linear in linears:
        if linear.d_out == heads.width(name):
            yield linear, None
    for linear in linears:
        if linear.d_out == heads.total and linear.d_out != heads.width(name):
            for columns in _layouts(name, heads):
                yield linear, columns


def _layouts(name: str, heads: _Heads) -> Iterator[Array]:
    """Columns of q, k or v in a merged projection: one behind the other; by head; by group of heads that share keys."""
    widths = [heads.width(one) for one in _INSIDE]
    index = _INSIDE.index(name)
    yield np.arange(sum(widths[:index]), sum(widths[: index + 1]))
    if len(set(heads.d.values())) != 1:
        return
    d, groups = heads.d[name], heads.n["k"]
    per_group = heads.n["q"] // groups
    block = np.arange(heads.total).reshape(groups, per_group + 2, d)
    parts = {"q": block[:, :per_group], "k": block[:, per_group : per_group + 1], "v": block[:, per_group + 1 :]}
    yield parts[name].reshape(-1)


def _feeds(backend: Backend, layer: int, name: str, linear: Linear, columns: Array | None, heads: _Heads) -> bool:
    """Whether a number more in these columns changes the head of q, k or v that it should, and nothing else of the three."""
    own = np.arange(linear.d_out) if columns is None else columns
    n, d = heads.n[name], heads.d[name]
    picked = sorted({head * d + j for head in (0, n // 2, n - 1) for j in (0, d - 1)})
    try:
        plain, *changed = _inside(backend, layer, linear, [None, *(int(own[i]) for i in picked)])
    except ProbewireError:
        return False
    for i, found in zip(picked, changed, strict=True):
        moved = {one: np.abs(found[one] - plain[one]).max(axis=(0, 2)) > 0 for one in _INSIDE}  # by head
        if any(moved[one].any() for one in _INSIDE if one != name) or not moved[name][i // d]:
            return False
        if columns is not None and moved[name].sum() != 1:
            return False
    return True


def _inside(backend: Backend, layer: int, linear: Linear, columns: list[int | None]) -> list[dict[str, Array]]:
    """q, k and v, [row, head, d_head], of one prompt: as it is, and with a number more in one column of a module's output."""
    plan = Plan(tuple(Hook(f"{name}.{layer}", capture=Capture(dtype="float32")) for name in _INSIDE))
    sequences: list[Sequence] = []
    for index, column in enumerate(columns):
        bound = bind(
            plan,
            backend,
            mode="run",
            input_name="input",
            tokens=_TOKENS,
            prompt_length=len(_TOKENS),
            n_rows=len(_TOKENS),
        )
        backend.bind(bound)
        if column is not None:
            bias = np.zeros(linear.d_out, dtype=np.float32)
            bias[column] = _PROBE
            nothing = Factors(np.zeros((linear.d_in, 1), np.float32), np.zeros((1, linear.d_out), np.float32), bias)
            bound.uses = (BoundUse(BoundVariant(f"probe {linear.path} {column}", {linear.path: nothing})),)
        sequences.append(Sequence(f"probe{index}", list(_TOKENS), len(_TOKENS), bound))
    found: list[dict[str, Array]] = []
    for result in backend.run(sequences):
        if result.error is not None:
            raise result.error
        found.append({_INSIDE[rows.hook]: rows.values[0] for rows in result.rows})
    return found
