"""What else could have been done: say it in the prompt, or add a vector everywhere. Fine-tuning is a method of `edit_facts`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...clients import Hook, steer
from ...protos.errors import InvalidArgument
from .fact import Fact
from .target_value import TargetValue

__all__ = ["in_context", "steered"]


def in_context(facts: Fact | Sequence[Fact]) -> str:
    """The facts as sentences, to stand before a prompt: `measure_facts(…, context=in_context(facts))`."""
    listed = (facts,) if isinstance(facts, Fact) else facts
    return "".join(f"{fact}. " for fact in listed)


def steered(value: TargetValue, positions: Sequence[int] | None = None) -> Hook:
    """The value of a fact added at every token (or some), whatever is read there: an edit without its key."""
    if not np.any(value.delta):
        raise InvalidArgument(f"the value of {value.fact.asked!r} adds nothing")
    vector = value.delta.astype(np.float32)
    if positions is None:
        return steer(f"mlp_out.{value.layer}", vector)
    return steer(f"mlp_out.{value.layer}", vector, positions=positions)
