"""Tiny checkpoints of architectures whose sequences cannot share a forward, and what transformers' own `generate` makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from tests.backends.derived import SIZES
from tests.tiny_models import VOCAB_SIZE

__all__ = ["KINDS", "Own", "own_generation"]

_EIGHT = {**SIZES, "num_key_value_heads": 2}
_DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
_ALTERNATE = ["linear_attention", "full_attention"] * 2

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # states
    "mamba": ("mamba", {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "mamba2": (
        "mamba2",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 4,
        },
    ),
    "falcon_mamba": ("falcon_mamba", {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8}),
    "rwkv": ("rwkv", {"hidden_size": 64, "num_hidden_layers": 3, "attention_hidden_size": 64, "context_length": 128}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**SIZES, "num_key_value_heads": 2, "lru_width": 64, "attention_window_size": 8, "head_dim": 16},
    ),
    # states and attention
    "jamba": (
        "jamba",
        {
            **_EIGHT,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "num_experts": 2,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("bamba", {**_EIGHT, **_MAMBA2, "attn_layer_indices": [1, 3]}),
    "falcon_h1": ("falcon_h1", {**_EIGHT, **_MAMBA2, "mamba_d_ssm": 128, "head_dim": 16}),
    "zamba2": (
        "zamba2",
        {
            **SIZES,
            "mamba_d_state": 8,
            "n_mamba_heads": 8,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "chunk_size": 4,
            "adapter_rank": 8,
            "num_key_value_heads": 4,
            "attention_head_dim": 32,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **_EIGHT,
            "head_dim": 16,
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 4,
            "use_mamba_kernels": False,
            "num_hidden_layers": 4,
            "hybrid_override_pattern": "M*M-",
        },
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **_EIGHT,
            **_MAMBA2,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
        },
    ),
    "lfm2": ("lfm2", {**_EIGHT, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}),
    "qwen3_next": ("qwen3_next", {**_EIGHT, **_DELTA, **_EXPERTS, "head_dim": 16, "layer_types": _ALTERNATE}),
    "qwen3_5_text": ("qwen3_5_text", {**_EIGHT, **_DELTA, "head_dim": 16, "layer_types": _ALTERNATE}),
    "kimi_linear": (
        "kimi_linear",
        {
            **SIZES,
            **_LATENT,
            "q_lora_rank": None,
            "num_key_value_heads": 4,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "layer_types": _ALTERNATE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
        },
    ),
    "minimax": (
        "minimax",
        {**_EIGHT, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 4},
    ),
    # values narrower than keys, chunks, modules that pass nothing on
    "deepseek_v2": (
        "deepseek_v2",
        {
            **SIZES,
            **_LATENT,
            "head_dim": 8,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **SIZES,
            **_LATENT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {
            **SIZES,
            **_LATENT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "llama4_text": (
        "llama4_text",
        {**_EIGHT, "head_dim": 16, "attention_chunk_size": 8, "intermediate_size_mlp": 96, "num_local_experts": 2},
    ),
    "stablelm": ("stablelm", _EIGHT),
    "nemotron": ("nemotron", {**_EIGHT, "head_dim": 16}),
    "gpt_bigcode": ("gpt_bigcode", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "n_inner": 96}),
    "jetmoe": (
        "jetmoe",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "intermediate_size": 96,
            "num_local_experts": 2,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 128,
        },
    ),
    # attention of their own
    "gptj": ("gptj", {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 128}),
    "codegen": ("codegen", {"n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8, "n_positions": 128}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "max_position_embeddings": 128,
            "intermediate_size": 96,
        },
    ),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 128}),
    "falcon": ("falcon", {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 96}),
    "falcon_alibi": (
        "falcon",
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 96, "alibi": True},
    ),
}
"""Name → (model type, sizes)."""


@dataclass(frozen=True, slots=True)
class Own:
    """A greedy generation of the library's."""

    tokens: list[int]
    """New ones."""
    logits: np.ndarray[Any, Any]
    """[new token, vocab], that each was chosen from."""


@torch.no_grad()
def own_generation(folder: Path, prompt: list[int], n_new: int) -> Own:
    """What `generate` of the library gives, with its own attention and cache."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    given = torch.tensor([prompt])
    made = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        do_sample=False,
        eos_token_id=VOCAB_SIZE - 1,
        pad_token_id=2,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.cat(made.logits).numpy()
    return Own(made.sequences[0, len(prompt) :].tolist(), logits)
