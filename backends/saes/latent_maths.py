"""Encoding, decoding and changing latents, over any backend's arrays, in the SAE's own dtype as sae-lens does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...protos.latents import LatentChange, Latents, ReadLatents
from ...protos.spec import Hook
from ..ops import Ops
from .sae import Sae

__all__ = ["DeviceSae", "LatentMaths", "Sparse"]

MAX_DENSE = 1 << 26
"""Latents that are held at once: a long prompt on a wide SAE is taken in parts, where its result is sparse."""
_EPS = 1e-5
"""sae-lens's, in layer_norm."""


class Columns(dict[str, Any]):
    """Some latents' part of an SAE's weights."""


@dataclass(eq=False, slots=True)
class DeviceSae:
    """An SAE's weights as a backend's tensors."""

    sae: Sae
    tensors: dict[str, Any]
    """All but the encoder."""
    encoder: Any
    """W_enc, as `Ops.linear` takes it."""
    columns: dict[tuple[int, ...], Columns]
    """Latents that a hook names → their part of the weights."""
    shared: WeakValueDictionary[tuple[int, ...], Columns]
    """The same of all hooks, as long as one of them is in use."""


@dataclass(eq=False, slots=True)
class Sparse:
    """The most active latents of some rows, on the device."""

    values: Any
    """[row, k]"""
    ids: Any
    """[row, k]"""
    count: Any
    """[row]: how many fire in all."""


class LatentMaths:
    """Over one backend's operations."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def device(self, sae: Sae) -> DeviceSae:
        """The SAE's weights on the device, put there once."""
        where = self.ops, self.ops.here
        if where not in sae.device:
            tensors = {name: self.ops.exact(array) for name, array in sae.arrays.items() if name != "W_enc"}
            if sae.rescale:
                norms = np.linalg.norm(sae.arrays["W_dec"].astype(np.float64), axis=-1)
                tensors["norms"] = self.ops.exact(norms.astype(sae.arrays["W_dec"].dtype))
            sae.device[where] = DeviceSae(sae, tensors, self.ops.weight(sae.arrays["W_enc"]), {}, WeakValueDictionary())
        return sae.device[where]

    def prepared(self, sae: Sae, hook: Hook) -> DeviceSae:
        """The SAE for one hook, with what it names gathered once.

        To be called outside a forward: torch would not differentiate past tensors that are made in one.
        """
        on = self.device(sae)
        edit, reduce = hook.edit, hook.capture.reduce if hook.capture is not None else None
        named: list[tuple[int, ...]] = []
        if isinstance(edit, Latents) and edit.sae == sae.name and edit.changes:
            named.append(tuple(change.id for change in edit.changes))
        if isinstance(reduce, ReadLatents) and reduce.sae == sae.name and reduce.ids is not None:
            named.append(reduce.ids)
        columns: dict[tuple[int, ...], Columns] = {}
        for ids in named:
            columns[ids] = found = on.shared.get(ids) or self._gathered(on, ids)
            on.shared[ids] = found
        return DeviceSae(sae, on.tensors, on.encoder, columns, on.shared)

    # ---- encoding ----

    def sparse(self, on: DeviceSae, rows: Any, k: int) -> Sparse:
        """The k most active latents of [row, …] rows: 0 and −1 where fewer fire."""
        parts = [self._sparse(on, part, k) for part in self._parts(on, rows)]
        if len(parts) == 1:
            return parts[0]
        join = self.ops.join
        return Sparse(join([p.values for p in parts]), join([p.ids for p in parts]), join([p.count for p in parts]))

    def _parts(self, on: DeviceSae, rows: Any) -> list[Any]:
        n = max(1, MAX_DENSE // on.sae.d_sae)
        return [rows] if len(rows) <= n else [rows[start : start + n] for start in range(0, len(rows), n)]

    def _sparse(self, on: DeviceSae, rows: Any, k: int) -> Sparse:
        ops, sae = self.ops, on.sae
        if sae.architecture != "topk":
            return self._listed(self.encode(on, rows), k)
        values, ids = ops.top_k(self._before(on, rows), sae.k)  # all that may fire, and so no list of all latents
        values = ops.clip(values, 0.0, None)
        fires = _fires(values)
        ids, count = ops.where(fires, ids, ops.zeros_like(ids) - 1), fires.sum(-1)
        values, ids = values[:, :k], ids[:, :k]
        if (missing := k - values.shape[-1]) > 0:
            values, ids = ops.pad_last(values, missing, 0), ops.pad_last(ids, missing, -1)
        return Sparse(values, ops.int32(ids), ops.int32(count))

    def _listed(self, f: Any, k: int) -> Sparse:
        """The k most active of all latents, [row, d_sae]."""
        ops = self.ops
        values, ids = ops.top_k(f, k)
        ids = ops.where(_fires(values), ids, ops.zeros_like(ids) - 1)
        return Sparse(values, ops.int32(ids), ops.int32(_fires(f).sum(-1)))

    def encode(self, on: DeviceSae, rows: Any) -> Any:
        """All latents of [row, …] rows: [row, d_sae]."""
        ops, sae = self.ops, on.sae
        before = self._before(on, rows)
        if sae.architecture != "topk":
            return self._activated(on.tensors, sae, before)
        _, ids = ops.top_k(ops.stop(before), sae.k)
        return ops.clip(before, 0.0, None) * ops.mark_last(before, ids)

    def some(self, on: DeviceSae, rows: Any, ids: tuple[int, ...]) -> Any:
        """Named latents of [row, …] rows: [row, latent]. Where latents do not compete, only these are computed."""
        if on.sae.architecture == "topk":
            return self.ops.take(self.encode(on, rows), self.ops.index(np.array(ids)), -1)
        part = self._columns(on, ids)
        return self._activated(part, on.sae, self._read(on, rows) @ part["W_enc"], biased=False)

    def _before(self, on: DeviceSae, rows: Any) -> Any:
        """[row, d_sae] before the activation function, without what gated and jumprelu add themselves."""
        x = self.ops.linear(self._read(on, rows), on.encoder)
        if on.sae.architecture == "gated":
            return x
        x = x + on.tensors["b_enc"]  # on its own, as sae-lens rounds it
        return x * on.tensors["norms"] if on.sae.rescale else x

    def _activated(self, tensors: dict[str, Any], sae: Sae, x: Any, *, biased: bool = True) -> Any:
        """`biased`: b_enc is in already."""
        ops = self.ops
        if sae.architecture == "gated":
            gate = ops.like(x + tensors["b_gate"] > 0, x)
            return gate * ops.clip(x * tensors["scale_mag"] + tensors["b_mag"], 0.0, None)
        x = x if biased else x + tensors["b_enc"]
        f = ops.clip(x, 0.0, None)
        return f * ops.like(x > tensors["threshold"], x) if sae.architecture == "jumprelu" else f

    def _read(self, on: DeviceSae, rows: Any) -> Any:
        """[row, d_in] as the encoder takes them: heads flattened, cast, normalised, b_dec off."""
        x = self._normal(on.sae, self._flat(on, rows))[0]
        return x - on.tensors["b_dec"] if on.sae.subtract else x

    def _flat(self, on: DeviceSae, rows: Any) -> Any:
        return self.ops.like(rows.reshape(rows.shape[0], -1), on.tensors["W_dec"])

    def _normal(self, sae: Sae, x: Any) -> tuple[Any, Any, Any]:
        """Rows normalised, and the scale and offset that undo it."""
        ops, n = self.ops, sae.d_in
        if sae.normalize == "none":
            return x, None, None
        wide = ops.f32(x)  # squares of a stream's norm overflow float16
        if sae.normalize == "layer_norm":
            offset = (wide.sum(-1) / n)[:, None]
            centred = wide - offset
            scale = ops.norm(centred) / (n - 1) ** 0.5
            return ops.like(centred / (scale + _EPS), x), scale, offset
        norm = ops.norm(wide)
        scale = ops.where(norm == 0, ops.zeros_like(norm) + 1, norm / n**0.5)  # a row of zeros stays one
        return ops.like(wide / scale, x), scale, None

    # ---- decoding ----

    def decode(self, on: DeviceSae, f: Any, rows: Any) -> Any:
        """[row, d_in] from all latents; `rows` are those that were encoded."""
        f = f / on.tensors["norms"] if on.sae.rescale else f
        return self._undone(on, f @ on.tensors["W_dec"] + on.tensors["b_dec"], rows)

    def _undone(self, on: DeviceSae, x: Any, rows: Any) -> Any:
        """What was decoded, the normalisation of `rows` undone."""
        _, scale, offset = self._normal(on.sae, self._flat(on, rows))
        x = x if scale is None else self.ops.f32(x) * scale
        return x if offset is None else x + offset

    def directions(self, on: DeviceSae, ids: tuple[int, ...] | None = None) -> Any:
        """[latent, d_in]: what one unit of each latent adds, before a normalisation is undone."""
        w_dec = on.tensors["W_dec"] if ids is None else self._columns(on, ids)["W_dec"]
        if not on.sae.rescale:
            return w_dec
        norms = on.tensors["norms"] if ids is None else self._columns(on, ids)["norms"]
        return w_dec / norms[:, None]

    def scale(self, on: DeviceSae, rows: Any) -> Any:
        """[row, 1]: what an undone normalisation multiplies each row by; None where there is none."""
        return self._normal(on.sae, self._flat(on, rows))[1]

    def _columns(self, on: DeviceSae, ids: tuple[int, ...]) -> Columns:
        return on.columns[ids] if ids in on.columns else self._gathered(on, ids)

    def _gathered(self, on: DeviceSae, ids: tuple[int, ...]) -> Columns:
        at = self.ops.index(np.array(ids))
        columns = {name: self.ops.take(tensor, at, 0) for name, tensor in on.tensors.items() if name != "b_dec"}
        if on.sae.architecture != "topk":  # whose latents compete: all are computed, always
            columns["W_enc"] = self.ops.exact(np.ascontiguousarray(on.sae.arrays["W_enc"][:, list(ids)]))
        return Columns(columns)

    # ---- the edit and the reduction ----

    def edited(self, edit: Latents, on: DeviceSae, rows: Any) -> Any:
        """The rows after the edit, in their own shape and dtype."""
        parts = [self._edited(edit, on, part) for part in self._parts(on, rows)]
        return parts[0] if len(parts) == 1 else self.ops.join(parts)

    def _edited(self, edit: Latents, on: DeviceSae, rows: Any) -> Any:
        ops = self.ops
        ids = tuple(change.id for change in edit.changes)
        if not edit.error:
            f = self.encode(on, rows)
            if ids:
                at = ops.index(np.array(ids))
                f = ops.put(f, at, -1, self._changed(edit.changes, ops.take(f, at, -1)))
            return ops.like(self.decode(on, f, rows), rows).reshape(rows.shape)
        f = self.some(on, rows, ids)
        delta = self._changed(edit.changes, f) - f
        moved = delta @ self.directions(on, ids)
        scale = self.scale(on, rows)
        moved = ops.like(moved if scale is None else ops.f32(moved) * scale, rows)
        # Rows that nothing moves are kept as they are: adding 0 would turn −0 into 0.
        same = ((delta != 0).sum(-1) == 0)[:, None]
        flat = rows.reshape(rows.shape[0], -1)
        return ops.where(same, flat, flat + moved).reshape(rows.shape)

    def _changed(self, changes: Sequence[LatentChange], f: Any) -> Any:
        """[row, latent] of the named latents, after their changes."""
        ops, new = self.ops, f
        scales = [1.0 if change.scale is None else change.scale for change in changes]
        adds = [change.add or 0.0 for change in changes]
        if any(s != 1.0 for s in scales):
            new = new * self._row(scales, f)
        if any(adds):
            new = new + self._row(adds, f)
        for name, replaces in (("set", None), ("min", "__lt__"), ("max", "__gt__")):
            given = [getattr(change, name) for change in changes]
            if all(value is None for value in given):
                continue
            bound = self._row([value or 0.0 for value in given], f) + ops.zeros_like(new)
            where = self._mask([value is not None for value in given], f)
            where = where if replaces is None else where & getattr(new, replaces)(bound)
            new = ops.where(where, bound, new)
        idle = self._mask([change.active for change in changes], f) & (f <= 0)
        return ops.where(idle, f, new) if any(change.active for change in changes) else new

    def _row(self, numbers: list[float], f: Any) -> Any:
        return self.ops.like(self.ops.device(np.array(numbers, dtype=np.float64)), f)[None]

    def _mask(self, flags: list[bool], f: Any) -> Any:
        return (self.ops.device(np.array(flags, dtype=np.float32))[None] + self.ops.zeros_like(f)) > 0

    def read(self, reduce: ReadLatents, on: DeviceSae, rows: Any) -> list[tuple[str, Any]]:
        """What the reduction sends of [row, …] rows, by part."""
        if reduce.ids is not None:
            return [("", self.ops.f32(self.some(on, rows, reduce.ids)))]
        if reduce.top_k is None:
            return [("", self.ops.f32(self.encode(on, rows)))]
        return _parts(self.sparse(on, rows, reduce.top_k), self.ops)

    def read_gradient(self, reduce: ReadLatents, on: DeviceSae, rows: Any, gradient: Any) -> list[tuple[str, Any]]:
        """The gradient by each latent, with the SAE's error term and any normalisation held: g·(what one unit adds).

        With `top_k`: of the latents that are most active, beside their values, then the error's and the bias's own
        share of row · gradient.
        """
        ops, scale = self.ops, self.scale(on, rows)
        g = ops.f32(gradient.reshape(gradient.shape[0], -1))
        scaled = g if scale is None else g * ops.like(scale, g)
        ids = reduce.ids if reduce.top_k is None else None
        by_latent = scaled @ ops.transpose_last(ops.like(self.directions(on, ids), g))
        if reduce.top_k is None:
            return [("", by_latent)]
        f = self.encode(on, rows)
        sparse = self._listed(f, reduce.top_k)
        known = ops.where(sparse.ids < 0, ops.zeros_like(sparse.ids), sparse.ids)
        picked = ops.where(sparse.ids < 0, ops.zeros_like(ops.f32(sparse.values)), ops.take_last(by_latent, known))
        flat = ops.like(rows.reshape(rows.shape[0], -1), g)
        error = flat - ops.like(self.decode(on, f, rows), g)
        bias = ops.like(self._undone(on, on.tensors["b_dec"], rows), g)
        parts = [("gradient", picked), ("error", (error * g).sum(-1)), ("bias", (bias * g).sum(-1))]
        return [*_parts(sparse, ops), *parts]


def _fires(f: Any) -> Any:
    """Whether latents fire; what is no number is shown, and not taken for one that does not."""
    return (f > 0) | (f != f)


def _parts(sparse: Sparse, ops: Ops) -> list[tuple[str, Any]]:
    return [("value", ops.f32(sparse.values)), ("index", sparse.ids), ("count", sparse.count)]
