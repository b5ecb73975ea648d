"""Weights under the names and in the layout that mlx-lm's loaders expect, from those that transformers writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...protos.tensors import Array

__all__ = ["checkpoint_weights", "mlx_weights"]


def mlx_weights(config: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """To be called before `Model.sanitize`. Values are arrays of any library; they are only sliced and transposed."""
    model_type = config["model_type"]
    named = dict(weights)
    if config.get("tie_word_embeddings"):
        # A copy of the embedding in the file, which transformers passes over.
        named.pop("lm_head.weight", None)
    if model_type == "gpt2":
        return {name.removeprefix("transformer."): value for name, value in named.items() if "masked_bias" not in name}
    if model_type == "gpt_oss":
        return {new: value for name, old in named.items() for new, value in _experts(name, old).items()}
    return named


def _experts(name: str, value: Any) -> dict[str, Any]:
    """Split gate and up, which transformers interleaves on the last axis, and put outputs before inputs."""
    stem, _, last = name.rpartition(".")
    if last == "gate_up_proj":
        parts = {"gate_proj.weight": value[..., ::2], "up_proj.weight": value[..., 1::2]}
        return {f"{stem}.{part}": _outputs_first(half) for part, half in parts.items()}
    if last == "gate_up_proj_bias":
        return {f"{stem}.gate_proj.bias": value[..., ::2], f"{stem}.up_proj.bias": value[..., 1::2]}
    if last == "down_proj" and stem.endswith("experts"):
        return {f"{stem}.down_proj.weight": _outputs_first(value)}
    if last == "down_proj_bias":
        return {f"{stem}.down_proj.bias": value}
    return {name: value}


def checkpoint_weights(config: Mapping[str, Any], weights: Mapping[str, Array]) -> dict[str, Array]:
    """The way back: weights under mlx-lm's names as transformers would write them."""
    if config["model_type"] != "gpt_oss":
        return dict(weights)
    named: dict[str, Array] = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        stem, _, part = stem.rpartition(".")
        if not stem.endswith(".experts"):
            named[name] = value
        elif part == "down_proj":
            named[f"{stem}.down_proj" if kind == "weight" else f"{stem}.down_proj_bias"] = _as_written(value, kind)
        elif part == "gate_proj":
            both = np.stack([value, weights[f"{stem}.up_proj.{kind}"]], axis=2).reshape(
                len(value), -1, *value.shape[2:]
            )
            named[f"{stem}.gate_up_proj" if kind == "weight" else f"{stem}.gate_up_proj_bias"] = _as_written(both, kind)
    return named


def _as_written(value: Array, kind: str) -> Array:
    return np.ascontiguousarray(_outputs_first(value)) if kind == "weight" else value


def _outputs_first(value: Any) -> Any:
    return value.swapaxes(-1, -2)
