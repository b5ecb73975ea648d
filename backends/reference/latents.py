"""What latents mean: an SAE's encoder, decoder, edit and reduction, row by row, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...protos.errors import NotFound
from ...protos.latents import LatentChange, Latents, ReadLatents
from ...protos.tensors import Array
from ..saes.sae import Sae

__all__ = ["decode", "edit_latents", "encode", "read_latents", "sae_named"]


def sae_named(saes: Mapping[str, Sae], name: str) -> Sae:
    """Raises NotFound."""
    if name not in saes:
        raise NotFound(f"no SAE {name!r}; there are {', '.join(saes) or 'none'}")
    return saes[name]


def encode(sae: Sae, row: Array) -> Array:
    """[d_in] to [d_sae]."""
    w = {key: array.astype(np.float64) for key, array in sae.arrays.items()}
    x, _, _ = _normalised(sae, row.astype(np.float64).reshape(-1))
    x = (x - w["b_dec"] if sae.subtract else x) @ w["W_enc"]
    if sae.architecture == "gated":
        return (x + w["b_gate"] > 0) * np.maximum(x * w["scale_mag"] + w["b_mag"], 0)
    x = x + w["b_enc"]
    if sae.architecture == "jumprelu":
        return np.where(x > w["threshold"], np.maximum(x, 0), 0)
    if sae.architecture == "topk":
        x = x * np.linalg.norm(w["W_dec"], axis=1) if sae.rescale else x
        chosen = np.argsort(-x, kind="stable")[: sae.k]
        kept = np.zeros_like(x)
        kept[chosen] = x[chosen]
        x = kept
    return np.maximum(x, 0)


def decode(sae: Sae, f: Array, row: Array) -> Array:
    """[d_sae] to [d_in]; `row` is what was encoded, whose normalisation is undone."""
    w_dec, b_dec = (sae.arrays[key].astype(np.float64) for key in ("W_dec", "b_dec"))
    f = f / np.linalg.norm(w_dec, axis=1) if sae.rescale else f
    _, scale, offset = _normalised(sae, row.astype(np.float64).reshape(-1))
    return (f @ w_dec + b_dec) * scale + offset


def _normalised(sae: Sae, x: Array) -> tuple[Array, float, float]:
    if sae.normalize == "layer_norm":
        std = float(x.std(ddof=1))
        return (x - x.mean()) / (std + 1e-5), std, float(x.mean())
    if sae.normalize == "constant_norm_rescale":
        scale = float(np.linalg.norm(x)) / sae.d_in**0.5 or 1.0  # a row of zeros stays one
        return x / scale, scale, 0.0
    return x, 1.0, 0.0


def edit_latents(edit: Latents, sae: Sae, rows: Array) -> Array:
    """[row, …] after the edit."""
    return np.stack([_edited(edit, sae, row) for row in rows]) if len(rows) else rows


def _edited(edit: Latents, sae: Sae, row: Array) -> Array:
    f = encode(sae, row)
    new = f.copy()
    for change in edit.changes:
        new[change.id] = _changed(change, float(f[change.id]))
    decoded = decode(sae, new, row).reshape(row.shape)
    if not edit.error:
        return decoded.astype(row.dtype)
    if (new == f).all():
        return row
    return (row + decoded - decode(sae, f, row).reshape(row.shape)).astype(row.dtype)


def _changed(change: LatentChange, f: float) -> float:
    if change.active and f <= 0:
        return f
    if change.set is not None:
        return change.set
    if change.add is not None:
        return f + change.add
    if change.scale is not None:
        return f * change.scale
    low = f if change.min is None else max(f, change.min)
    return low if change.max is None else min(low, change.max)


def read_latents(reduce: ReadLatents, sae: Sae, rows: Array) -> dict[str, Array]:
    """Part → what is sent."""
    f = np.stack([encode(sae, row) for row in rows]) if len(rows) else np.zeros((0, sae.d_sae))
    if reduce.top_k is None:
        return {"": f if reduce.ids is None else f[:, list(reduce.ids)]}
    ids = np.argsort(-f, axis=-1, kind="stable")[:, : reduce.top_k]
    values = np.take_along_axis(f, ids, axis=-1)
    return {
        "value": values,
        "index": np.where(values > 0, ids, -1).astype(np.int32),
        "count": (f > 0).sum(axis=-1).astype(np.int32),
    }
