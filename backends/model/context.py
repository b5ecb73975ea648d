"""How many positions a model may use: what the operator allows, and no more than what it computes alike at every length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ...protos.errors import FailedPrecondition
from .limits import Limits

__all__ = ["fitted"]

LONGROPE = (
    "beyond it the model's rotary frequencies change for a whole sequence at once (longrope), what came before included"
)


def fitted(limits: Limits, config: Any, more: Iterable[tuple[int | None, str]] = ()) -> tuple[Limits, str]:
    """The limits with the context that fits, and why it is shorter than the operator's; empty where it is not.

    `config` is the text model's as transformers reads it; `more` are other bounds with their reasons. Raises
    FailedPrecondition for a model that has no positions.
    """
    own = getattr(config, "max_position_embeddings", None)
    if own is not None and own < 1:
        raise FailedPrecondition(f"the model's config says max_position_embeddings = {own}; it must be above 0")
    bounds = [(own, "the model has no more positions (max_position_embeddings)"), (_longrope(config), LONGROPE), *more]
    longest, note = limits.context_tokens, ""
    for bound, reason in bounds:
        if bound and int(bound) < longest:
            longest, note = int(bound), reason
    return replace(limits, context_tokens=longest), note


def _longrope(config: Any) -> int | None:
    """The length up to which transformers takes the short factors: the longest sequence of a *batch* decides."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    parts: list[dict[str, Any]] = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    lengths: list[int] = []
    for part in parts:
        if part.get("rope_type", part.get("type")) == "longrope":
            original = part.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            lengths.append(int(original or config.max_position_embeddings))
    return min(lengths, default=None)
