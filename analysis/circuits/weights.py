"""The rows and columns of weights that a circuit's units own, and deltas confined to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.variants.delta import Delta
from ...protos.variants.variant import Variant
from .circuit import Circuit
from .space import Unit

__all__ = ["Sizes", "WeightMask", "WeightPart", "circuit_weights", "weights_owned"]

Side = Literal["rows", "columns", "all"]
"""Of W [d_out, d_in]: rows are outputs, columns inputs."""
Entry = tuple[str, Side, Iterable[int] | None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, as far as they decide what a unit owns."""

    weights: Collection[str]
    """Names of those that may change; empty: not known."""
    n_heads: int
    n_kv_heads: int
    of: Callable[[str, int | None], tuple[int, ...]]
    """(q, k, v or z; layer) → (heads, coordinates of one)."""

    @classmethod
    def of_model(cls, info: ModelInfo) -> Sizes:
        """Of a served model."""

        def of(site: str, layer: int | None) -> tuple[int, ...]:
            known = info.site(site)
            found = () if known is None else known.at(layer)
            return found or ({"k": info.n_kv_heads, "v": info.n_kv_heads}.get(site, info.n_heads), info.d_head)

        return cls({weight.name for weight in info.weights}, info.n_heads, info.n_kv_heads, of)


@dataclass(frozen=True, slots=True)
class WeightPart:
    """Rows or columns of one weight W [d_out, d_in]."""

    side: Side
    index: tuple[int, ...]
    """Ascending; empty where it is all of the weight."""
    scores: tuple[float, ...]
    """Of each row or column: the largest |score| of the units that own it, with its sign."""
    units: tuple[str, ...]
    """Names of the circuit's units that own some of it."""
    shared_with: tuple[str, ...] = ()
    """Heads that are not in the circuit and read the same keys and values."""

    def along(self, side: Side, size: int) -> NDArray[np.bool_]:
        """[size]: which of the rows, or columns, belong to it; all where it is not of that side."""
        if self.side != side:
            return np.ones(size, dtype=bool)
        if self.index and self.index[-1] >= size:
            raise InvalidArgument(f"the circuit has {side} up to {self.index[-1]}, and this weight has {size}")
        found = np.zeros(size, dtype=bool)
        found[list(self.index)] = True
        return found


@dataclass(frozen=True, slots=True)
class WeightMask:
    """Weight name → the part that a circuit owns. A mask of one side keeps the rank of any delta."""

    parts: Mapping[str, WeightPart]
    shared: Mapping[str, WeightPart]
    """Keys and values, which several heads read: left out of `parts` unless they were asked for."""
    circuit: str
    """Its id."""
    notes: tuple[str, ...] = ()

    def dense(self, name: str, d_out: int, d_in: int) -> NDArray[np.bool_]:
        """[d_out, d_in]: True where the circuit owns the number. All False for a weight that it does not touch."""
        part = self.parts.get(name)
        if part is None:
            return np.zeros((d_out, d_in), dtype=bool)
        return part.along("rows", d_out)[:, None] & part.along("columns", d_in)[None, :]

    def confined(self, variant: Variant) -> Variant:
        """The variant's deltas with zeros outside the circuit: M ∘ (B A) = (m_out ∘ B)(A ∘ m_in), exactly. Its hooks stay.

        Weights that the circuit does not touch lose their delta. A bias belongs to rows, so it is kept there and in whole
        weights, and dropped where the circuit owns columns. Raises InvalidArgument when nothing is left.
        """
        kept: dict[str, Delta] = {}
        for name, delta in variant.deltas.items():
            part = self.parts.get(name)
            if part is None:
                continue
            rows, columns = part.along("rows", delta.d_out), part.along("columns", delta.d_in)
            bias = None if delta.bias is None or part.side == "columns" else delta.bias * rows
            kept[name] = Delta(delta.a * columns[:, None], delta.b * rows[None, :], bias)
        if not kept and not variant.plan.hooks:
            raise InvalidArgument(
                f"none of the variant's weights ({', '.join(list(variant.deltas)[:4])}) is one that the circuit touches "
                f"({', '.join(list(self.parts)[:4])})"
            )
        parent = {"hash": variant.hash, "name": variant.manifest.name}
        manifest = replace(
            variant.manifest,
            name="",
            method="circuit_mask",
            options={},
            made_of=(parent, {"circuit": self.circuit}),
            circuit={"id": self.circuit},
            norms={},
            metrics={},
            reports={},
        )
        return Variant(kept, variant.plan, manifest)

    def __repr__(self) -> str:
        sides = [
            f"{name} ({'all' if part.side == 'all' else f'{len(part.index)} {part.side}'})"
            for name, part in self.parts.items()
        ]
        more = f", … {len(sides) - 6} more" if len(sides) > 6 else ""
        return f"WeightMask({', '.join(sides[:6])}{more})"


def circuit_weights(client: Client, circuit: Circuit, *, include_shared: bool = False, model: str = "") -> WeightMask:
    """The weights that implement a circuit's units, on the model that is served.

    Neuron j: row j of w_gate and w_up, column j of w_down. Head h: its rows of w_q and columns of w_o; its key-value head's rows
    of w_k and w_v belong to other heads too where keys are grouped, and are listed in `shared` (with `include_shared` they
    count). A whole attn_out or mlp_out: the block; a coordinate of either: a row of w_o or w_down. Positions do not count,
    as weights have none. Raises InvalidArgument for another model's circuit, and for units that own no weights.
    """
    info = client.describe(model)
    made_on = circuit.origin.model_hash
    if made_on and made_on != info.model_hash:
        raise InvalidArgument(
            f"the circuit is of model {made_on[:16]}… ({circuit.origin.model}), and this is {info.model_hash[:16]}… ({info.id})"
        )
    return weights_owned(circuit, Sizes.of_model(info), include_shared=include_shared)


def weights_owned(circuit: Circuit, sizes: Sizes, *, include_shared: bool = False) -> WeightMask:
    """The same of a model that no server has, such as one in training. Raises InvalidArgument as `circuit_weights`."""
    own, shared, notes = _Gathered(), _Gathered(), list[str]()
    for unit, score in zip(circuit.units, circuit.scores, strict=True):
        for entry in _owned(unit, sizes):
            own.add(entry, unit, score)
        for entry in _read_with_others(unit, sizes):
            shared.add(entry, unit, score)
    if any(unit.position is not None for unit in circuit.units):
        notes.append("units were told apart by position; weights have none, so each counts at every position")
    group = sizes.n_heads // max(sizes.n_kv_heads, 1)
    others = _sharing(circuit, sizes)
    parts, lists = (_parts(gathered, sizes.weights, notes) for gathered in (own, shared))
    lists = {name: replace(part, shared_with=others.get(name, ())) for name, part in lists.items()}
    if include_shared or group == 1:
        parts |= lists
        lists = {}
    elif lists:
        notes.append(
            f"{group} heads read each key and value, so w_k and w_v are listed apart (shared); include_shared=True takes them in"
        )
    if not parts:
        raise InvalidArgument(
            f"the model has none of the weights of this circuit: {'; '.join(notes) or 'no weights known'}"
        )
    return WeightMask(parts, lists, circuit.id, tuple(notes))


class _Gathered:
    """Rows and columns of weights as they are collected."""

    def __init__(self) -> None:
        self.sides: dict[str, Side] = {}
        self.scores: dict[str, dict[int, float]] = {}
        self.units: dict[str, dict[str, None]] = {}

    def add(self, entry: Entry, unit: Unit, score: float) -> None:
        name, side, index = entry
        before = self.sides.setdefault(name, side)
        if before != side and "all" not in (before, side):
            raise InvalidArgument(
                f"the circuit has rows and columns of {name} ({unit.name} among them); a delta confined to both has another rank: "
                "take neurons (mlp_act) or coordinates of the output (mlp_out), not both of one layer"
            )
        self.sides[name] = "all" if "all" in (before, side) else side
        scores = self.scores.setdefault(name, {})
        for i in index or ():
            if abs(score) >= abs(scores.get(i, 0.0)):
                scores[i] = score
        self.units.setdefault(name, {})[unit.name] = None


def _parts(found: _Gathered, known: Collection[str], notes: list[str]) -> dict[str, WeightPart]:
    lost = sorted(name for name in found.sides if known and name not in known)
    if lost:
        notes.append(f"this model takes no deltas at {', '.join(lost[:6])}{' …' if len(lost) > 6 else ''}")
    parts: dict[str, WeightPart] = {}
    for name, side in found.sides.items():
        if name not in lost:
            scores = {} if side == "all" else dict(sorted(found.scores[name].items()))
            parts[name] = WeightPart(side, tuple(scores), tuple(scores.values()), tuple(found.units[name]))
    return parts


def _owned(unit: Unit, sizes: Sizes) -> list[Entry]:
    site = Site.parse(unit.site)
    layer = site.layer
    if site.name == "mlp_act" and unit.unit is not None:
        j = (unit.unit,)
        return [(f"w_gate.{layer}", "rows", j), (f"w_up.{layer}", "rows", j), (f"w_down.{layer}", "columns", j)]
    if site.name == "z" and unit.head is not None:
        return [
            (f"w_q.{layer}", "rows", _coordinates(sizes, "q", layer, unit.head)),
            (f"w_o.{layer}", "columns", _coordinates(sizes, "z", layer, unit.head)),
        ]
    if site.name in ("attn_out", "mlp_out") and unit.unit is not None:
        return [(f"{'w_o' if site.name == 'attn_out' else 'w_down'}.{layer}", "rows", (unit.unit,))]
    if unit.unit is None and unit.head is None:
        blocks = {
            "attn_out": ("w_q", "w_k", "w_v", "w_o"),
            "z": ("w_q", "w_k", "w_v", "w_o"),
            "mlp_out": ("w_gate", "w_up", "w_down"),
            "mlp_act": ("w_gate", "w_up", "w_down"),
        }
        if site.name in blocks:
            return [(f"{name}.{layer}", "all", None) for name in blocks[site.name]]
        if site.name == "embed":
            return [("w_embed", "all", None)]
    raise InvalidArgument(
        f"{unit.name} owns no rows or columns of weights; neurons (mlp_act), heads (z), attn_out, mlp_out and embed do"
    )


def _read_with_others(unit: Unit, sizes: Sizes) -> list[Entry]:
    site = Site.parse(unit.site)
    if site.name != "z" or unit.head is None:
        return []
    group = _key_value_head(sizes, unit.head)
    return [(f"w_{name}.{site.layer}", "rows", _coordinates(sizes, name, site.layer, group)) for name in ("k", "v")]


def _sharing(circuit: Circuit, sizes: Sizes) -> dict[str, tuple[str, ...]]:
    """w_k.3, w_v.3 → the heads outside the circuit that read the keys and values which it does."""
    inside: dict[int, set[int]] = {}
    for unit in circuit.units:
        site = Site.parse(unit.site)
        if site.name == "z" and unit.head is not None and site.layer is not None:
            inside.setdefault(site.layer, set()).add(unit.head)
    found: dict[str, tuple[str, ...]] = {}
    for layer, heads in inside.items():
        groups = {_key_value_head(sizes, head) for head in heads}
        n_heads = sizes.of("q", layer)[0]
        others = [h for h in range(n_heads) if h not in heads and _key_value_head(sizes, h) in groups]
        names = tuple(f"z.{layer} head {head}" for head in others)
        found |= {f"w_k.{layer}": names, f"w_v.{layer}": names}
    return found


def _key_value_head(sizes: Sizes, head: int) -> int:
    """⌊h · n_kv / n_heads⌋: heads share key-value heads in order, as all families here do."""
    return head * max(sizes.n_kv_heads, 1) // sizes.n_heads


def _coordinates(sizes: Sizes, site: str, layer: int | None, head: int) -> range:
    width = sizes.of(site, layer)[-1]
    return range(head * width, (head + 1) * width)
