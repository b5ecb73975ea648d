"""The hash that names a variant's content."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, cast

import numpy as np

from ..spec import Plan
from ..tensors import Array, Tensor
from ..wire.codec import snake
from .delta import Delta
from .manifest import jsonable

__all__ = ["content_hash"]


def content_hash(model_hash: str, deltas: Mapping[str, Delta], plan: Plan) -> str:
    """SHA-256 in hex of canonical JSON: base, shapes and hashes of little-endian float32 factors, plan with hashed tensors.

    What a hook leaves at its default is not in it, so a later version's new fields change no hash.
    """
    content = {
        "base": model_hash,
        "deltas": {name: _told(deltas[name]) for name in sorted(deltas)},
        "plan": [_value(hook) for hook in plan.hooks],
    }
    return sha256(jsonable(content, "the variant").encode()).hexdigest()


def _told(delta: Delta) -> dict[str, Any]:
    arrays = {"a": delta.a, "b": delta.b} | ({} if delta.bias is None else {"bias": delta.bias})
    return {name: {"shape": list(array.shape), "sha256": _digest(array)} for name, array in arrays.items()}


def _digest(array: Array) -> str:
    return sha256(np.ascontiguousarray(array, dtype="<f4").data).hexdigest()


def _value(value: Any) -> Any:
    """A value of the contract as JSON data: its kind, and the fields that differ from their defaults."""
    if isinstance(value, Tensor):
        return {
            "kind": "tensor",
            "dtype": value.dtype,
            "shape": list(value.shape),
            "sha256": sha256(value.data).hexdigest(),
        }
    if isinstance(value, tuple):
        return [_value(item) for item in cast("tuple[Any, ...]", value)]
    if not dataclasses.is_dataclass(value):
        return value
    held = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    given = {one.name for one in dataclasses.fields(value) if not _default(one, held[one.name])}
    return {"kind": snake(cast("type", type(value)))} | {name: _value(held[name]) for name in sorted(given)}


def _default(field: dataclasses.Field[Any], value: Any) -> bool:
    return field.default is not dataclasses.MISSING and field.default == value
