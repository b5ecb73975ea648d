"""A small config of the same architecture: everything that decides how it computes stays, its sizes do not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from .text_config import text_config

__all__ = ["VOCAB", "WINDOW", "WINDOWS", "crossed", "full_config", "plain_json", "shrunk"]

VOCAB = 128
WINDOW = 8
"""The small model's window, where it has one."""
WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size")
"""What configs call it, and the length of chunks of attention."""
D_MODEL, D_MLP, N_HEADS = 64, 96, 4
STATE_HEAD = 16
MOST_EXPERTS = 4
LONGEST_PERIOD = 12
"""Layers of one period of a pattern that are kept whole."""
_PACKED = ("quantization_config", "quantization", "compression_config")
"""How weights are stored; the small ones are stored plainly."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SIZES = {
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    "moe_shared_expert_intermediate_size": 32,
    "ssm_state_size": 16,
    **dict.fromkeys(("q_lora_rank", "o_lora_rank"), 32),
    **dict.fromkeys(("kv_lora_rank", "v_head_dim", "qk_nope_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "qk_rope_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "n_routed_experts": MOST_EXPERTS,
    "moe_num_experts": MOST_EXPERTS,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
}
"""Sizes of what only some architectures have; each no larger than it was."""
_LENGTHS = ("original_max_position_embeddings", "attention_chunk_size", "floor_scale")
"""Positions at which something begins to be computed otherwise."""
_LIMITS: dict[str, Any] = {
    "clip_qkv": 0.5,
    "swiglu_limit": 0.5,
    "attn_logit_softcapping": 1.0,
    "final_logit_softcapping": 1.0,
    "logits_soft_cap": 1.0,
    "index_topk": WINDOW,
}
"""What values may be at most: such that small ones reach it too."""
TIME_STEP = 0.1
"""The same of a state's time steps."""


def full_config(folder: Path) -> dict[str, Any]:
    """The config of a folder's text model as transformers reads it: defaults written out, old spellings brought up to date."""
    return plain_json(text_config(folder).get_text_config().to_json_string(use_diff=False))


def plain_json(text: str) -> dict[str, Any]:
    """A config, in which transformers writes an infinite number as an object."""
    return json.loads(text, object_hook=lambda found: float(found["__float__"]) if "__float__" in found else found)


def shrunk(full: Mapping[str, Any], *, n_layers: int = 0) -> dict[str, Any]:
    """The same architecture at a small size. `full` has every field written out, as `full_config` gives it.

    `n_layers`: that are kept at least, from the first on: kinds that a number tells (every fourth, from the third on) repeat
    in no list that could be read.

    Equal numbers that mean different things stay apart: sizes are set by what they are, never looked up by what they were.
    """
    if "num_hidden_layers" not in full and "layers_block_type" in full:  # nemotron_h has its layers' kinds alone
        full = {**full, "num_hidden_layers": len(full["layers_block_type"])}
    other = _other_names(full)
    small = _shrunk({**full, **{name: full[own] for name, own in other.items()}}, n_layers)
    return {name: value for name, value in small.items() if name not in other} | {
        own: small[name] for name, own in other.items()
    }


def _other_names(full: Mapping[str, Any]) -> dict[str, str]:
    """The usual name → the architecture's own, of what it calls otherwise (gptj: n_embd)."""
    from transformers import AutoConfig

    kind: Any = type(AutoConfig.for_model(full["model_type"]))
    pairs: dict[str, str] = getattr(kind, "attribute_map", {})
    return {name: own for name, own in pairs.items() if own in full and name not in full}


def _shrunk(full: Mapping[str, Any], n_layers: int) -> dict[str, Any]:
    n_heads = full.get("num_attention_heads") or N_HEADS
    n_kv_heads = full.get("num_key_value_heads") or n_heads
    own_head = full.get("head_dim") or full["hidden_size"] // n_heads
    d_head = 16 if n_heads * own_head == full["hidden_size"] else 24
    kept = _kept_layers(full)
    if n_layers:
        kept = list(range(min(max(n_layers, len(kept)), full["num_hidden_layers"])))
    small: dict[str, Any] = {
        **{name: value for name, value in full.items() if name not in _PACKED},
        "vocab_size": VOCAB,
        "hidden_size": D_MODEL,
        "intermediate_size": 4 * D_MODEL if full.get("intermediate_size") == 4 * full["hidden_size"] else D_MLP,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": 1 if n_kv_heads == 1 else N_HEADS if n_kv_heads == n_heads else N_HEADS // 2,
        "num_hidden_layers": len(kept),
        "dtype": "float32",
    }
    small |= dict.fromkeys(_TOKENS, 1)  # within the small vocabulary; an architecture's own default may not be
    if full.get("head_dim") or d_head != D_MODEL // N_HEADS:
        small["head_dim"] = d_head
    small |= {name: WINDOW for name in WINDOWS if full.get(name)}
    for name in ("num_local_experts", "num_experts", "num_experts_per_tok"):
        if full.get(name):
            small[name] = min(full[name], MOST_EXPERTS // 2 if name.endswith("tok") else MOST_EXPERTS)
    small |= {name: min(full[name], size) for name, size in _SIZES.items() if isinstance(full.get(name), int)}
    if full.get("qk_rope_head_dim") and full.get("head_dim") == full["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]  # one size under two names
    small |= {name: min(value, len(kept) - 1) for name, value in full.items() if name.endswith("layer_end_index")}
    small |= _state_heads(full)
    if full.get("rotary_dim"):
        small["rotary_dim"] = max(full["rotary_dim"] * d_head // own_head // 2 * 2, 2)
    for name in _per_layer(full):
        small[name] = [full[name][i] for i in kept]
    if own := {int(layer): changes for layer, changes in (full.get("per_layer_config") or {}).items()}:
        small["per_layer_config"] = {at: own[layer] for at, layer in enumerate(kept) if layer in own}
    if full.get("rope_parameters"):
        small["rope_parameters"] = _rope(full["rope_parameters"], full, d_head)
    return small


def crossed(small: Mapping[str, Any]) -> dict[str, Any]:
    """With every length and limit at which something changes brought down, so that a short text and small values pass it."""
    return {name: _lowered(name, value) for name, value in small.items()}


def _lowered(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return crossed(cast("dict[str, Any]", value))
    if name in _LENGTHS and value:
        return WINDOW
    if name in _LIMITS and value:
        return min(value, _LIMITS[name])
    if name == "time_step_limit" and value and value[1] < math.inf:
        return [value[0], min(value[1], TIME_STEP)]
    return value


def _state_heads(full: Mapping[str, Any]) -> dict[str, int]:
    """Heads of a state that together are a multiple of the model's width, as their classes ask; of Nemotron-H, one a group."""
    if full.get("mamba_num_heads") and full.get("mamba_head_dim"):
        groups = int(full.get("n_groups") or 1)
        return {
            "mamba_num_heads": min(groups * max(8 // groups, 1), full["mamba_num_heads"]),
            "mamba_head_dim": STATE_HEAD,
        }
    width = 0 if full.get("mamba_d_ssm") else int(D_MODEL * (full.get("mamba_expand") or full.get("expand") or 0))
    for heads, size in (("mamba_n_heads", "mamba_d_head"), ("num_heads", "head_dim")):
        if width and isinstance(full.get(heads), int) and full.get(size):
            return {heads: width // STATE_HEAD, size: STATE_HEAD}
    return {}


def _per_layer(full: Mapping[str, Any]) -> list[str]:
    """Fields that say something of each layer."""
    n = full["num_hidden_layers"]
    return [name for name, value in full.items() if isinstance(value, list) and len(cast("list[Any]", value)) == n]


def _kept_layers(full: Mapping[str, Any]) -> list[int]:
    """One whole period of the layers' pattern, so that each kind is there; or the first of each kind where there is none."""
    n = full["num_hidden_layers"]
    kinds = [json.dumps([full[name][i] for name in _per_layer(full)]) for i in range(n)]
    period = next(p for p in range(1, n + 1) if all(kinds[i] == kinds[i % p] for i in range(n)))
    period = min(math.lcm(period, len(full.get("block_types") or [0])), n)  # recurrent_gemma's pattern, written once
    if period <= LONGEST_PERIOD:
        return list(range(min(max(period, 2 + bool(full.get("first_k_dense_replace"))), n)))
    return sorted(kinds.index(kind) for kind in set(kinds))


def _rope(rope: Mapping[str, Any], full: Mapping[str, Any], d_head: int) -> dict[str, Any]:
    """Rotary settings, in which a list has a factor for each pair of rotated coordinates."""
    if any(isinstance(value, dict) for value in rope.values()):  # a part for each kind of layer
        return {kind: _rope(part, full, d_head) if isinstance(part, dict) else part for kind, part in rope.items()}
    share = rope.get("partial_rotary_factor") or full.get("partial_rotary_factor") or 1.0
    pairs = int(d_head * share) // 2
    return {
        name: cast("list[Any]", value)[:pairs] if isinstance(value, list) else value for name, value in rope.items()
    }
