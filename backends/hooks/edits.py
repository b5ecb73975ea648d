"""The edits, in float32, over any backend's arrays. The formulas are those of protos/edits.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    Inline,
    Latents,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Zeros,
)
from ...protos.errors import InvalidArgument
from ...protos.sites import ATTENTION_SITES, Site
from ...protos.spec import Condition
from ..bases import gram_schmidt, span_basis
from ..noise import noise_row
from ..ops import Ops
from ..saes.latent_maths import LatentMaths
from .bound import BoundHook

__all__ = ["Edits", "tensors_of"]


class Edits:
    """Edits over one backend's operations."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.latents = LatentMaths(ops)

    def prepare(self, bound: BoundHook, *, later: bool = False) -> None:
        """Put what an edit and its condition need on the device, once a sequence; `later`: on each when it is reached."""
        bound.device = {}
        if not later:
            tensors_of(self.ops, bound)

    def coordinate(self, bound: BoundHook, number: int, rows: Any) -> Any:
        """What one of the hook's conditions reads of each row: [row], float32."""
        ops, when = self.ops, bound.conditions[number]
        rows = ops.f32(rows if when.head is None else rows[:, when.head])
        direction = tensors_of(ops, bound)["when"][number]
        if when.normalise:
            rows = self._of_length_one(rows)
        return rows[:, when.unit] if direction is None else (rows * direction).sum(-1)

    def _of_length_one(self, rows: Any) -> Any:
        """Rows over their norms; rows of zeros stay. The largest number comes out first: squares of large ones overflow."""
        ops = self.ops
        largest = ops.max_last(abs(rows))
        rows = rows / ops.where(largest > 0, largest, ops.zeros_like(largest) + 1)
        length = ops.norm(rows)
        return rows / ops.where(length > 0, length, ops.zeros_like(length) + 1)

    def apply(
        self, bound: BoundHook, index: int, site: Site, rows: Any, positions: NDArray[np.int64], linear_input: Any
    ) -> Any:
        """The edited rows ([row, …], float32) at the given absolute positions."""
        edit, device, ops = bound.hook.edit, tensors_of(self.ops, bound), self.ops
        assert edit is not None
        if isinstance(edit, LowRank):
            if linear_input is None:
                raise InvalidArgument(f"low_rank cannot be used at {site}: its linear module's input is not at hand")
            read = ops.f32(linear_input)
            delta = edit.alpha * ((read @ ops.like(device["a"], read)) @ ops.like(device["b"], read))
            return rows + delta.reshape(rows.shape)
        if isinstance(edit, Latents):
            return self.latents.edited(edit, device["saes"][edit.sae], rows)
        units = self._units(edit, device, rows)
        part = rows if edit.heads is None else ops.take(rows, device["heads"], 1)
        inner = part if units is None else ops.take(part, units, -1)
        new = self._apply(edit, bound, index, site, inner, rows, positions)
        if units is not None:
            new = ops.put(part, units, -1, new)
        return new if edit.heads is None else ops.put(rows, device["heads"], 1, new)

    def _units(self, edit: Edit, device: dict[str, Any], rows: Any) -> Any:
        """Unit index; at attention sites, key positions that do not exist yet are left out."""
        if edit.units is None or max(edit.units) < rows.shape[-1]:
            return device.get("units")
        return self.ops.index(_below(edit.units, rows.shape[-1]))

    def _apply(
        self, edit: Edit, bound: BoundHook, index: int, site: Site, x: Any, rows: Any, positions: NDArray[np.int64]
    ) -> Any:
        ops, device = self.ops, tensors_of(self.ops, bound)
        if isinstance(edit, Add):
            if edit.alpha == 0:
                return x
            vector = device["vector"]
            if edit.units is not None and x.shape[-1] != vector.shape[-1]:
                vector = ops.take(vector, ops.index(_kept(edit.units, rows.shape[-1])), -1)
            return x + (edit.alpha * ops.norm(x) * vector if edit.norm_match else edit.alpha * vector)
        if isinstance(edit, Scale):
            return x * edit.factor
        if isinstance(edit, ProjectOut):
            basis = ops.like(device["basis"], x)
            return x - (x @ ops.transpose_last(basis)) @ basis
        if isinstance(edit, Clamp):
            if edit.directions is None:
                return ops.clip(x, edit.min, edit.max)
            basis = ops.like(device["basis"], x)
            coordinates = x @ ops.transpose_last(basis)
            return x + (ops.clip(coordinates, edit.min, edit.max) - coordinates) @ basis
        if isinstance(edit, Noise):
            return x + edit.std * self._noise(edit, site, rows, positions)
        if isinstance(edit, Affine):
            inner = x @ ops.like(device["a"], x)
            inner = inner if edit.c is None else inner + ops.like(device["c"], x)
            return x + edit.alpha * (inner @ ops.like(device["b"], x))
        assert isinstance(edit, Replace)
        return self._replace(edit, bound, index, site, x, rows, positions)

    def _noise(self, edit: Noise, site: Site, rows: Any, positions: NDArray[np.int64]) -> Any:
        shape = tuple(int(n) for n in rows.shape[1:])
        draws = np.stack([noise_row(edit.seed, site, int(p), shape) for p in positions])
        if edit.heads is not None:
            draws = draws[:, list(edit.heads)]
        if edit.units is not None:
            draws = draws[..., list(edit.units)]
        return self.ops.device(np.ascontiguousarray(draws))

    def _replace(
        self,
        edit: Replace,
        bound: BoundHook,
        index: int,
        site: Site,
        x: Any,
        rows: Any,
        positions: NDArray[np.int64],
    ) -> Any:
        ops, device = self.ops, tensors_of(self.ops, bound)
        if isinstance(edit.source, Zeros):
            return ops.zeros_like(x)
        if isinstance(edit.source, Constant):
            constant = device["constant"]
            if edit.units is not None and constant.ndim and x.shape[-1] != constant.shape[-1]:
                constant = ops.take(constant, ops.index(_kept(edit.units, rows.shape[-1])), -1)
            return ops.zeros_like(x) + constant
        source = device["rows"][index] if bound.per_site else device["rows"]
        taken = ops.take(source, ops.index(np.array([bound.row_of[int(p)] for p in positions])), 0)
        if isinstance(edit.source, Inline):
            if edit.units is not None and taken.shape[-1] != x.shape[-1]:  # keys that do not exist yet
                taken = ops.take(taken, ops.index(_kept(edit.units, rows.shape[-1])), -1)
            elif edit.units is None and site.name in ATTENTION_SITES:
                taken = self._with_keys(taken, rows.shape[-1], positions, site)
        else:  # stored captures and other inputs hold whole rows
            taken = taken if edit.heads is None else ops.take(taken, device["heads"], 1)
            if site.name in ATTENTION_SITES:
                taken = self._with_keys(taken, rows.shape[-1], positions, site)
            units = None if edit.units is None else _below(edit.units, taken.shape[-1])
            taken = taken if units is None else ops.take(taken, ops.index(units), -1)
        if tuple(taken.shape) != tuple(x.shape):
            raise InvalidArgument(
                f"replace: source rows have shape {list(taken.shape[1:])}, the site's part has {list(x.shape[1:])}"
            )
        return ops.like(taken, x)

    def _with_keys(self, taken: Any, n_keys: int, positions: NDArray[np.int64], site: Site) -> Any:
        """Rows of attention with as many keys as there are here; what is filled in lies where a query cannot see."""
        held = int(taken.shape[-1])
        if held >= n_keys:
            return taken[..., :n_keys]
        if len(positions) and (last := int(positions.max())) >= held:
            raise InvalidArgument(
                f"replace brings {held} keys; a query it reaches at {site} sees more, {last + 1} at position {last}"
            )
        return self.ops.pad_last(taken, n_keys - held, 0.0)


def tensors_of(ops: Ops, bound: BoundHook) -> dict[str, Any]:
    """What a hook, its edit and its condition need, on the device that rows are on: made there once a sequence."""
    assert bound.device is not None, "its plan was bound"
    if ops.here not in bound.device:
        with ops.lasting():
            bound.device[ops.here] = _tensors(ops, bound)
    return bound.device[ops.here]


def _tensors(ops: Ops, bound: BoundHook) -> dict[str, Any]:
    edit, out = bound.hook.edit, dict[str, Any]()
    if bound.saes:
        maths = LatentMaths(ops)
        out["saes"] = {name: maths.prepared(sae, bound.hook) for name, sae in bound.saes.items()}
    if bound.conditions:
        out["when"] = [_direction(ops, one) for one in bound.conditions]
    if edit is None:
        return out
    if edit.units is not None:
        out["units"] = ops.index(np.array(edit.units))
    if edit.heads is not None:
        out["heads"] = ops.index(np.array(edit.heads))
    if isinstance(edit, Add):
        vector = edit.vector.floats()
        if edit.norm_match:  # in float64: squares of a number that float32 holds may be none
            wide = vector.astype(np.float64)
            norms = np.linalg.norm(wide, axis=-1, keepdims=True)
            vector = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0).astype(np.float32)
        out["vector"] = ops.device(vector)
    elif isinstance(edit, ProjectOut):
        out["basis"] = ops.device(span_basis(edit.directions.floats()))
    elif isinstance(edit, Clamp) and edit.directions is not None:
        out["basis"] = ops.device(gram_schmidt(edit.directions.floats()))
    elif isinstance(edit, (LowRank, Affine)):
        out["a"], out["b"] = ops.device(edit.a.floats()), ops.device(edit.b.floats())
        if isinstance(edit, Affine) and edit.c is not None:
            out["c"] = ops.device(edit.c.floats())
    elif isinstance(edit, Replace) and isinstance(edit.source, Constant):
        out["constant"] = ops.device(edit.source.value.floats())
    elif bound.source is not None:
        out["rows"] = ops.device(bound.source)
    return out


def _direction(ops: Ops, condition: Condition) -> Any:
    """A condition's direction on the device, of length 1 where its coordinate is a cosine."""
    if condition.direction is None:
        return None
    direction = condition.direction.floats()
    if condition.normalise:
        wide = direction.astype(np.float64)
        direction = (wide / np.linalg.norm(wide)).astype(np.float32)
    return ops.device(direction)


def _below(units: tuple[int, ...], width: int) -> NDArray[np.int64]:
    return np.array([unit for unit in units if unit < width], dtype=np.int64)


def _kept(units: tuple[int, ...], width: int) -> NDArray[np.int64]:
    return np.array([i for i, unit in enumerate(units) if unit < width], dtype=np.int64)
