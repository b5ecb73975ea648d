"""What a capture sends of the rows it selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.latents import ReadLatents
from ...protos.sites import ATTENTION_SITES, Site
from ...protos.spec import Capture, Gather, Last, Mean, NextLogprob, Norm, Project, TopK
from ...protos.tensors import Array, numpy_dtype
from ..saes.sae import Sae
from .latents import read_latents, sae_named

__all__ = ["Captured", "captured_rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """Rows of one hook at one site."""

    positions: tuple[int, ...]
    """Of the row axis; none for a mean."""
    values: Array
    """The site's axes ([head, query, key] at attention sites), or the reduction's. `last` and `mean` keep one row."""


def captured_rows(
    capture: Capture,
    site: Site,
    rows: Array,
    positions: Sequence[int],
    tokens: Sequence[int],
    saes: Mapping[str, Sae] | None = None,
) -> dict[str, Captured]:
    """Part → what is sent of the rows [row, …] at `positions`. Empty for `last` and `mean` of no rows."""
    reduce, own = capture.reduce, capture.dtype or str(rows.dtype)
    computed = capture.dtype or "float32"
    if site.name in ATTENTION_SITES and reduce is not None:
        raise InvalidArgument(f"{site} cannot be reduced: its key axis has no fixed width")
    if isinstance(reduce, (Gather, NextLogprob)) and site.name != "logits":
        raise InvalidArgument(f"{type(reduce).__name__} reads logits, not {site}")
    at = tuple(positions)
    if isinstance(reduce, (Last, Mean)) and not at:
        return {}
    if reduce is None:
        return {"": _captured(at, rows, own)}
    if isinstance(reduce, Last):
        return {"": _captured(at[-1:], rows[-1:], own)}
    if isinstance(reduce, Mean):
        return {"": _captured((), rows.mean(axis=0, keepdims=True), computed)}
    if isinstance(reduce, Norm):
        return {"": _captured(at, np.sqrt((rows * rows).sum(axis=-1)), computed)}
    if isinstance(reduce, Project):
        directions = np.atleast_2d(reduce.directions.floats()).astype(rows.dtype)
        return {"": _captured(at, rows @ directions.T, computed)}
    if isinstance(reduce, TopK):
        index = np.argsort(-rows, axis=-1, kind="stable")[..., : reduce.k]
        values = np.take_along_axis(rows, index, axis=-1)
        return {"value": _captured(at, values, computed), "index": _captured(at, index, "int64")}
    if isinstance(reduce, ReadLatents):
        parts = read_latents(reduce, sae_named(saes or {}, reduce.sae), rows)
        floats = {part: computed if values.dtype.kind == "f" else str(values.dtype) for part, values in parts.items()}
        return {part: _captured(at, values, floats[part]) for part, values in parts.items()}
    if isinstance(reduce, Gather):
        return {"": _captured(at, rows[:, list(reduce.ids)], computed)}
    return _next_logprob(rows, at, tokens, computed, reduce.top)


def _next_logprob(
    rows: Array, positions: tuple[int, ...], tokens: Sequence[int], dtype: str, top: int
) -> dict[str, Captured]:
    kept = [i for i, p in enumerate(positions) if p + 1 < len(tokens)]
    at = tuple(positions[i] for i in kept)
    logits = rows[kept].astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    following = np.array([tokens[p + 1] for p in at], dtype=np.int64)
    found = {"": _captured(at, np.take_along_axis(logprobs, following[:, None], axis=-1)[:, 0], dtype)}
    if top:
        index = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
        found["value"] = _captured(at, np.take_along_axis(logprobs, index, axis=-1), dtype)
        found["index"] = _captured(at, index, "int64")
    return found


def _captured(positions: tuple[int, ...], values: Array, dtype: str) -> Captured:
    return Captured(positions, values.astype(numpy_dtype(dtype)))
