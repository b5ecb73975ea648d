"""Configs of tiny models whose layers are not alike: in heads, widths, mixers or MLPs; and of mixtures of experts."""

from __future__ import annotations

from typing import Any

from tests.backends.derived import SIZES

__all__ = ["SUMMED", "UNEVEN"]

_GROUPED = {**SIZES, "num_key_value_heads": 2}
_HEADS = {**_GROUPED, "head_dim": 16}
_MIXTURE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
_LATENT = {
    **SIZES,
    **_ROUTED,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}
_WINDOWS = ["sliding_attention", "full_attention"] * 2
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_GEMMA4 = {**_HEADS, "global_head_dim": 32, "sliding_window": 8, "layer_types": _WINDOWS}

UNEVEN: dict[str, dict[str, Any]] = {
    "gemma4_text": {**_GEMMA4, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
    "deepseek_v3": _LATENT,
    "glm4_moe_lite": _LATENT,
    "minicpm3": _LATENT,
    "qwen3_next": {**_HEADS, **_MIXTURE, **_DELTA},
    "qwen3_5_text": {**_HEADS, **_DELTA},
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 32},
    "jamba": {
        **_GROUPED,
        **_MIXTURE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "granite": {**_GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "granitemoe": {**_GROUPED, **_MIXTURE, "residual_multiplier": 0.5},
    "granitemoeshared": {**_GROUPED, **_MIXTURE, "residual_multiplier": 0.5, "shared_intermediate_size": 32},
    "mixtral": {**_GROUPED, **_MIXTURE},
    "qwen2_moe": {**_GROUPED, **_MIXTURE},
    "qwen3_moe": {**_HEADS, **_MIXTURE},
    "olmoe": {**_GROUPED, **_MIXTURE},
    "phimoe": {**_GROUPED, **_MIXTURE},
    "llama4_text": {**_HEADS, **_MIXTURE, "intermediate_size_mlp": 96, "moe_layers": [1, 3], "attention_chunk_size": 8},
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "word_embed_proj_dim": 64,
    },
    "mimo_v2_flash": {
        **_HEADS,
        **_ROUTED,
        "v_head_dim": 12,
        "swa_num_attention_heads": 8,
        "swa_num_key_value_heads": 4,
        "swa_head_dim": 16,
        "swa_v_head_dim": 12,
        "sliding_window": 8,
        "layer_types": _WINDOWS,
    },
    "nemotron_h": {
        **_HEADS,
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        **_ROUTED,
        "moe_shared_expert_intermediate_size": 32,
    },
}
"""Model type → its config's fields."""

_SHARED = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "residual_multiplier": 0.5}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}

SUMMED: dict[str, dict[str, Any]] = {
    "granitemoeshared": UNEVEN["granitemoeshared"],
    "granitemoe_swa": {**_HEADS, **_SHARED, "sliding_window": 8},
    "granitemoehybrid": {**_GROUPED, **_MAMBA2, **_SHARED, "layer_types": ["mamba", "attention"] * 2},
    "falcon_h1": {
        **_HEADS,
        **_MAMBA2,
        "mamba_d_ssm": 128,
        "ssm_out_multiplier": 0.7,
        "attention_out_multiplier": 0.9,
    },
}
"""Of which a layer adds up two modules' outputs itself."""
