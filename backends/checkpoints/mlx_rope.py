"""The rotary embedding of a config in mlx-lm's words, so that it turns queries and keys as transformers does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...protos.errors import InvalidArgument

__all__ = ["MlxRope", "mlx_rope"]


@dataclass(frozen=True, slots=True)
class MlxRope:
    """What mlx-lm needs to know of one rotary embedding."""

    theta: float
    scaling: dict[str, Any] | None = None
    """`rope_scaling`; None for the plain kind."""
    max_positions: int | None = None
    """Beyond it transformers changes the frequencies and mlx-lm does not, or differently."""
    freqs: tuple[float, ...] | None = None
    """Where no config says it: the value of `rope._freqs`, reciprocal radians a position, [d_head / 2]."""
    overrides: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further fields of the config that mlx-lm reads for the same purpose."""


def mlx_rope(parameters: dict[str, Any], max_position_embeddings: int, d_rotary: int) -> MlxRope:
    """Translate `rope_parameters` as transformers standardises it. Raises InvalidArgument for unknown kinds."""
    kind = parameters["rope_type"]
    theta = float(parameters["rope_theta"])
    if kind == "default":
        return MlxRope(theta)
    if kind == "linear":
        return MlxRope(theta, _scaling(kind, factor=float(parameters["factor"])))
    if kind == "dynamic":
        # Up to the trained length its frequencies are the plain ones; beyond, they depend on how the text was chunked.
        return MlxRope(theta, max_positions=max_position_embeddings)
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return MlxRope(theta, _scaling(kind, **{name: parameters[name] for name in names}))
    if kind == "yarn":
        return _yarn(parameters, theta, max_position_embeddings, d_rotary)
    if kind == "longrope":
        return _longrope(parameters, theta, max_position_embeddings)
    raise InvalidArgument(
        f"rope_type {kind!r} cannot be run on mlx as transformers runs it; allowed: default, linear, dynamic, llama3, "
        "yarn, longrope; load this model with the torch backend"
    )


def _scaling(kind: str, **values: Any) -> dict[str, Any]:
    # mlx-lm reads either key, depending on the family.
    return {"type": kind, "rope_type": kind, **values}


def _yarn(parameters: dict[str, Any], theta: float, max_position_embeddings: int, d_rotary: int) -> MlxRope:
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_position_embeddings / original
    beta_fast, beta_slow = parameters.get("beta_fast") or 32, parameters.get("beta_slow") or 1
    scaling = _scaling(
        "yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        **_yarn_mscale(parameters, factor),
    )
    if parameters.get("truncate", True):
        return MlxRope(theta, scaling)
    # mlx-lm always rounds the ends of the ramp to whole dimensions, which is what truncate=false forbids.
    low, high = (
        d_rotary * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in (beta_fast, beta_slow)
    )
    return MlxRope(theta, scaling, freqs=_yarn_freqs(theta, factor, max(low, 0.0), min(high, d_rotary - 1.0), d_rotary))


def _yarn_mscale(parameters: dict[str, Any], factor: float) -> dict[str, float]:
    """The two fields whose ratio, in mlx-lm's formula, is the attention factor of transformers."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    attention = parameters.get("attention_factor")
    if attention is None:
        attention = scale(mscale) / scale(all_dim) if mscale and all_dim else scale(1.0)
    if factor <= 1 and attention != 1:
        raise InvalidArgument(
            f"yarn with factor {factor} and attention_factor {attention} cannot be run on mlx, which scales by 1 there; "
            "load this model with the torch backend"
        )
    return {"mscale": (attention - 1.0) / (0.1 * math.log(factor)) if factor > 1 else 1.0, "mscale_all_dim": 0.0}


def _yarn_freqs(theta: float, factor: float, low: float, high: float, d_rotary: int) -> tuple[float, ...]:
    if low == high:
        high += 0.001
    freqs: list[float] = []
    for index in range(d_rotary // 2):
        period = theta ** (2 * index / d_rotary)
        ramp = min(max((index - low) / (high - low), 0.0), 1.0)
        freqs.append(1 / (ramp / (factor * period) + (1 - ramp) / period))
    return tuple(freqs)


def _longrope(parameters: dict[str, Any], theta: float, max_position_embeddings: int) -> MlxRope:
    """mlx-lm uses the long factors at every length, transformers the short ones up to the original length."""
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_position_embeddings / original
    attention = parameters.get("attention_factor")
    if attention is not None:
        if attention < 1:
            raise InvalidArgument(
                f"longrope with attention_factor {attention} cannot be run on mlx (1 or more is allowed); "
                "load this model with the torch backend"
            )
        factor = original ** (attention**2 - 1)
    short = parameters["short_factor"]
    scaling = _scaling("longrope", original_max_position_embeddings=original, short_factor=short, long_factor=short)
    return MlxRope(
        theta,
        scaling,
        max_positions=original,
        # mlx-lm takes the scale of queries and keys from the ratio of these two.
        overrides={"max_position_embeddings": original * factor, "original_max_position_embeddings": original},
    )
