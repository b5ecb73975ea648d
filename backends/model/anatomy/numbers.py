"""Numbers of a config that a model may multiply something with."""

from __future__ import annotations

from typing import Any

__all__ = ["head_caps", "head_scales", "numbers_of"]

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def numbers_of(config: Any) -> list[float]:
    """Those that may scale something, and what minicpm makes of one."""
    own = [float(v) for v in config.to_dict().values() if isinstance(v, float) and 1e-3 < abs(v) < 1e3 and v != 1.0]
    if depth := getattr(config, "scale_depth", None):
        own.append(depth / config.num_hidden_layers**0.5)
    if base := getattr(config, "dim_model_base", None):  # its head reads rows divided by so much
        own.append(config.hidden_size / base)
    return list(dict.fromkeys(own))


def head_caps(config: Any) -> list[float]:
    """Those that may cap logits."""
    return [float(cap) for cap in (getattr(config, name, None) for name in _CAPS) if cap]


def head_scales(config: Any) -> list[float]:
    """Those that may scale logits: 1 first."""
    numbers = numbers_of(config)
    return [1.0, *numbers, *(1 / number for number in numbers)]
