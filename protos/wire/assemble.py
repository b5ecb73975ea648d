"""Whole arrays out of tensor frames: the rows that a capture sent step by step, joined in the order they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..errors import Internal
from ..model import TensorFrame
from ..sites import ATTENTION_SITES, Site
from ..tensors import Array

__all__ = ["AssembledCapture", "CaptureKey", "assemble", "row_axis"]


class CaptureKey(NamedTuple):
    """What tells one capture of a request from another."""

    input: str
    hook: int
    """Index of the hook in the plan."""
    site: str
    part: str
    """"value" and "index" for top_k, else empty."""
    revision: int = 0
    """Of the session, since when the hook was what it is; 0: the request's own hook."""


@dataclass(frozen=True, slots=True, eq=False)
class AssembledCapture:
    """Every row that one hook sent from one site of one input."""

    key: CaptureKey
    id: str
    """The hook's id."""
    positions: tuple[int, ...]
    """Absolute position of each row; empty for `mean`."""
    array: Array
    """The site's own axes: [pos, …], at attn_* [head, query, key]. Shorter key axes are filled up at their end: with
    −inf in attn_scores, 0 in attn_probs, −1 in indices. May be a read-only view of the frame it came in."""


def assemble(frames: Iterable[TensorFrame]) -> dict[CaptureKey, AssembledCapture]:
    """One capture a key, in the order of first appearance. Raises Internal for frames that do not fit together."""
    rows: dict[CaptureKey, list[tuple[TensorFrame, Array]]] = {}
    for frame in frames:
        values = frame.tensor.numpy()
        if not values.shape or values.shape[0] != len(frame.sites):
            raise Internal(f"a tensor frame of {len(frame.sites)} sites has shape {list(values.shape)}")
        for site, value in zip(frame.sites, values, strict=True):
            rows.setdefault(CaptureKey(frame.input, frame.hook, site, frame.part, frame.hook_revision), []).append(
                (frame, value)
            )
    return {key: _joined(key, found) for key, found in rows.items()}


def _joined(key: CaptureKey, found: list[tuple[TensorFrame, Array]]) -> AssembledCapture:
    axis = row_axis(key.site)
    for frame, value in found:
        if frame.positions and (value.ndim <= axis or value.shape[axis] != len(frame.positions)):
            raise Internal(
                f"a tensor frame of {key.site} with {len(frame.positions)} positions has shape {list(value.shape)}"
            )
    first, array = found[0]
    if len(found) > 1:
        array = _concatenated(key, [value for _, value in found], axis)
    positions = tuple(position for frame, _ in found for position in frame.positions)
    return AssembledCapture(key, first.id, positions, array)


@lru_cache(maxsize=4096)
def row_axis(site: str) -> int:
    """Which axis of a site's array the positions index: 1 (query) at attn_*, else 0."""
    return 1 if Site.parse(site).name in ATTENTION_SITES else 0


def _concatenated(key: CaptureKey, values: list[Array], axis: int) -> Array:
    if len({value.dtype for value in values}) > 1:
        raise Internal(f"frames of {key.site} came in several dtypes: {sorted({str(v.dtype) for v in values})}")
    last = values[0].ndim - 1
    if axis == 1 and last > axis:
        longest = max(value.shape[-1] for value in values)
        values = [_filled(key, value, longest) for value in values]
    try:
        return np.concatenate(values, axis=axis)
    except ValueError as error:
        raise Internal(f"frames of {key.site} do not fit together: {error}") from None


def _filled(key: CaptureKey, value: Array, longest: int) -> Array:
    missing = longest - value.shape[-1]
    if not missing:
        return value
    fill = -1 if value.dtype.kind in "iu" else -np.inf if Site.parse(key.site).name == "attn_scores" else 0
    return np.concatenate([value, np.full((*value.shape[:-1], missing), fill, value.dtype)], axis=-1)
