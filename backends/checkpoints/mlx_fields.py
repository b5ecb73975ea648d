"""What a config says, under every name that mlx-lm's classes may look for it: for architectures that no rule was written for.

mlx-lm fills what it does not find with defaults of its own, and takes what it knows of what it finds; so much is given, and
the model that comes of it is held against transformers (`backends/selfcheck.py`) before anybody uses it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...protos.errors import InvalidArgument
from .mlx_rope import MlxRope, mlx_rope

__all__ = ["mlx_fields"]

_OLD_NAMES = {"rope_theta": ("rotary_emb_base",), "partial_rotary_factor": ("rotary_pct", "rope_pct")}
_WHOLE_LAYERS = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
_BUILT_IN: dict[str, dict[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "gemma4_unified_text": {"hidden_size_per_layer_input": 0},
    "minimax_m2": {"shared_intermediate_size": 0},
    "solar_open": {"first_k_dense_replace": 0, "use_qk_norm": False},
}
"""Model type → what transformers' class has built in and mlx-lm's asks for."""


def mlx_fields(config: Mapping[str, Any], full: Mapping[str, Any]) -> tuple[dict[str, Any], MlxRope | None]:
    """Fields for mlx-lm, and how its rotary embedding turns; None where the model has none, or several.

    `config` is as written, `full` as transformers reads it. Raises InvalidArgument for a rotary embedding that mlx-lm has not.
    """
    model_type = full["model_type"]
    fields = {**_by_other_names(full), **_BUILT_IN.get(model_type, {}), **config, **full}
    if model_type == "exaone4":  # L: within a window; G: to everything
        fields["sliding_window_pattern"] = full["sliding_window"] and "".join(
            "LG"[kind == "full_attention"] for kind in full["layer_types"]
        )
    if model_type == "solar_open":
        fields["intermediate_size"] = full["moe_intermediate_size"]
    if "n_inner" in fields and fields["n_inner"] is None:
        fields["n_inner"] = 4 * fields["n_embd"]
    if model_type in ("gemma4_text", "gemma4_unified_text"):
        fields |= _of_whole_layers(full)
    if model_type.startswith("qwen3_5"):
        fields["full_attention_interval"] = full["layer_types"].index("full_attention") + 1
    if model_type == "granitemoehybrid":
        names = {"linear_attention": "mamba", "full_attention": "attention"}
        fields["layer_types"] = [names.get(kind, kind) for kind in full["layer_types"]]
        fields["position_embedding_type"] = full.get("position_embedding_type") or "nope"
        if not full.get("num_local_experts"):
            fields["intermediate_size"] = full["shared_intermediate_size"]
    if model_type == "nemotron_h":  # transformers' class holds steps to this, whatever time_step_limit says
        fields["time_step_limit"] = [full["time_step_min"], math.inf]
    if model_type == "lfm2":
        fields.setdefault("block_dim", full["hidden_size"])
    n_heads = full.get("num_attention_heads")
    if isinstance(n_heads, int) and n_heads and not full.get("head_dim"):
        fields["head_dim"] = full["hidden_size"] // n_heads
    parameters = full.get("rope_parameters") or {}
    if "rope_type" not in parameters:
        return fields | _of_full_attention(parameters), None
    share = parameters.get("partial_rotary_factor") or 1.0
    rope = mlx_rope(parameters, full["max_position_embeddings"], int((fields.get("head_dim") or 0) * share))
    if rope.freqs is not None:
        raise InvalidArgument(
            f"yarn with truncate=false cannot be run on mlx for {model_type}; load this model with the torch backend"
        )
    fields.setdefault("rotary_dim", int((fields.get("head_dim") or 0) * share))
    fields |= {"rope_theta": rope.theta, "partial_rotary_factor": share, "rope_scaling": rope.scaling, **rope.overrides}
    return fields | {old: fields[name] for name, names in _OLD_NAMES.items() for old in names}, rope


def _of_whole_layers(full: Mapping[str, Any]) -> dict[str, Any]:
    """What differs in layers with full attention, which transformers says layer by layer and mlx-lm once."""
    found: dict[str, Any] = {}
    for index, own in (full.get("per_layer_config") or {}).items():
        if full["layer_types"][int(index)] == "full_attention":
            found |= {new: own[name] for name, new in _WHOLE_LAYERS.items() if name in own}
    return found


def _by_other_names(full: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers' class knows under a second name; published configs have either."""
    from transformers import AutoConfig

    kind: Any = type(AutoConfig.for_model(full["model_type"]))
    pairs: dict[str, str] = getattr(kind, "attribute_map", {})
    other = {alias: full[name] for alias, name in pairs.items() if name in full}
    return other | {name: full[alias] for alias, name in pairs.items() if alias in full}


def _of_full_attention(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Where each kind of layer has its own: what the classes that know of one take for it."""
    whole: Mapping[str, Any] = parameters.get("full_attention") or {}
    if not whole:
        return {}
    plain = whole.get("rope_type") == "default"
    scaling = None if plain else {**whole, "type": whole.get("rope_type")}
    return {"rope_theta": whole.get("rope_theta"), "rope_scaling": scaling}
