"""The sampling options of a call, as keywords, and the value that they make."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ...protos.errors import InvalidArgument
from ...protos.generation.sampling import Grammar, Sampling, TokenBias

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
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    """1 (default): off."""
    logit_bias: Mapping[int, float] | Sequence[TokenBias]
    """Token id → what is added to its logit."""
    grammar: Grammar | Mapping[str, Any] | None
    """What the text must follow; a dict is a JSON schema."""


def to_sampling(options: SamplingOptions) -> Sampling:
    """As the request has it. Raises InvalidArgument for options that there are not."""
    unknown = sorted(set(options) - set(SamplingOptions.__annotations__))
    if unknown:
        raise InvalidArgument(f"unknown options {unknown}; allowed: {', '.join(SamplingOptions.__annotations__)}")
    stop = options.get("stop", ())
    values: dict[str, Any] = {**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    biases, grammar = options.get("logit_bias", ()), options.get("grammar")
    if isinstance(biases, Mapping):
        values["logit_bias"] = tuple(TokenBias(token, bias) for token, bias in biases.items())
    if isinstance(grammar, Mapping):
        values["grammar"] = Grammar("json_schema", json.dumps(grammar))
    return Sampling(**values)
