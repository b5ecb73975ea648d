"""The sampling options of a call, as keywords, and the value that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from ...protos.errors import InvalidArgument
from ...protos.model import Sampling

__all__ = ["SamplingOptions", "to_sampling"]


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen; see `protos.model.Sampling` for bounds and defaults."""

    max_new_tokens: int
    """128 by default."""
    temperature: float
    """0 (default) is greedy."""
    top_p: float
    top_k: int
    """0 (default): off."""
    seed: int | None
    """None (default): the server draws one and reports it."""
    stop: str | Sequence[str]
    logprobs: int | None
    """n: log-probability of the sampled token and of the n likeliest."""
    ignore_eos: bool


def to_sampling(options: SamplingOptions) -> Sampling:
    """As the request has it. Raises InvalidArgument for options that there are not."""
    unknown = sorted(set(options) - set(SamplingOptions.__annotations__))
    if unknown:
        raise InvalidArgument(f"unknown options {unknown}; allowed: {', '.join(SamplingOptions.__annotations__)}")
    stop = options.get("stop", ())
    values: dict[str, Any] = {**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return Sampling(**values)
