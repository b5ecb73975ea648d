"""What a user may write for a target, and the targets that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric, Target

__all__ = ["Targets", "to_targets"]

Targets = Metric | Target | Mapping[str, Metric] | Sequence[Metric | Target]
"""One metric for every input; a metric an input, by name; or several of them."""


def to_targets(value: Targets) -> tuple[Target, ...]:
    """The request's targets. Raises InvalidArgument for anything else."""
    if isinstance(value, Target):
        return (value,)
    if isinstance(value, get_args(Metric)):
        return (Target(cast("Metric", value)),)
    if isinstance(value, Mapping):
        named = cast("Mapping[str, Any]", value)
        return tuple(Target(_metric(metric), (name,)) for name, metric in named.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(target for item in cast("Sequence[Any]", value) for target in to_targets(item))
    raise InvalidArgument(f"a target is a metric such as Logit(token), {{input: metric}} or a list, got {value!r}")


def _metric(value: Any) -> Metric:
    if not isinstance(value, get_args(Metric)):
        raise InvalidArgument(f"a metric is one of {', '.join(c.__name__ for c in get_args(Metric))}, got {value!r}")
    return value
