"""What a user may write for the variants of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...protos.spec import Where
from ...protos.variants.use import VariantUse
from .hooks import Options, where_of

__all__ = ["Variants", "use"]

Variants = str | VariantUse | Sequence[str | VariantUse]
"""A name (name@2, owner/name, sha256:…), a `use`, or several of these; none for "" and ()."""


def use(name: str, scale: float = 1.0, *, where: Where | Mapping[str, Any] | None = None) -> VariantUse:
    """A variant at a strength, and at some tokens only: `use("formal", 0.5, where=dict(phase="generated"))`.

    `scale`: times its deltas and what its hooks change; 0 is the base. `where`: positions, spans, phase, token_ids.
    Raises InvalidArgument for what is none.
    """
    if not isinstance(where, Where):
        where = where_of(cast("Options", dict(where or {})))
    return VariantUse(name, scale, where)
