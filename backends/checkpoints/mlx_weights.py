"""Weights under the names and in the layout that mlx-lm's loaders expect, from those that transformers writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["mlx_weights"]


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


def _outputs_first(value: Any) -> Any:
    return value.swapaxes(-1, -2)
