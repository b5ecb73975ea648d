"""What the config.json of published checkpoints says: sizes, heads, windows, patterns, rotary settings, as written there.

Facts only, and only those that decide how a model computes. Fields that a file leaves out are left out here too: what a
library assumes for them is part of what is tested.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PUBLISHED"]


def _llama(d: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    base = {
        "rms_norm_eps": 1e-05,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
    }
    return (
        _sizes("llama", d, mlp, layers, heads, kv) | base | {"vocab_size": 128256, "tie_word_embeddings": False} | more
    )


def _sizes(kind: str, d: int, mlp: int, layers: int, heads: int, kv: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": d,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
    }


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }


def _mistral(d: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    base = {"rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 1000000.0}
    return _sizes("mistral", d, mlp, layers, heads, kv) | base | {"max_position_embeddings": 32768} | more


def _qwen(kind: str, d: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "hidden_act": "silu",
        "max_window_layers": layers,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    }
    return _sizes(kind, d, mlp, layers, heads, kv) | base | more


def _gemma2(d: int, mlp: int, layers: int, heads: int, kv: int, head_dim: int, scalar: int) -> dict[str, Any]:
    return _sizes("gemma2", d, mlp, layers, heads, kv) | {
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": scalar,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    }


def _gemma3(d: int, mlp: int, layers: int, heads: int, kv: int, window: int, **more: Any) -> dict[str, Any]:
    return _sizes("gemma3_text", d, mlp, layers, heads, kv) | {
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": window,
        "vocab_size": 262144,
        **more,
    }


def _phi3(d: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "hidden_act": "silu",
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 32064,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
    }
    return _sizes("phi3", d, mlp, layers, heads, kv) | base | more


def _longrope(pairs: int) -> dict[str, Any]:
    """As many factors as pairs of rotated coordinates; the published numbers grow from about 1 to about 60."""
    return {
        "type": "longrope",
        "short_factor": [1.0 + 0.03 * i for i in range(pairs)],
        "long_factor": [1.0 + 1.2 * i for i in range(pairs)],
    }


def _gpt2(d: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": d,
        "n_head": heads,
        "n_layer": layers,
        "n_positions": 1024,
        "vocab_size": 50257,
    }


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _sizes("gpt_oss", 2880, 2880, layers, 64, 8) | {
        "attention_bias": True,
        "experts_per_token": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "initial_context_length": 4096,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "max_position_embeddings": 131072,
        "num_experts_per_tok": 4,
        "num_local_experts": experts,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150000,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "vocab_size": 201088,
        "eos_token_id": 200002,
        "pad_token_id": 199999,
    }


_R1 = {"bos_token_id": 151646, "eos_token_id": 151643, "max_position_embeddings": 131072, "rope_theta": 10000}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": _llama(4096, 14336, 32, 32, 8, **_llama3_rope(8.0)),
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, head_dim=64, **_llama3_rope(32.0), tie_word_embeddings=True),
    "Llama-3.2-3B": _llama(3072, 8192, 28, 24, 8, head_dim=128, **_llama3_rope(32.0), tie_word_embeddings=True),
    "Llama-3.3-70B-Instruct": _llama(
        8192, 28672, 80, 64, 8, **_llama3_rope(8.0), eos_token_id=[128001, 128008, 128009]
    ),
    "Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 32, vocab_size=32000, max_position_embeddings=4096),
    "TinyLlama-1.1B-Chat": _llama(
        2048, 5632, 22, 32, 4, vocab_size=32000, rope_theta=10000.0, max_position_embeddings=2048
    ),
    "SmolLM2-135M-Instruct": _llama(576, 1536, 30, 9, 3, vocab_size=49152, rope_theta=100000, tie_word_embeddings=True),
    "SmolLM2-1.7B-Instruct": _llama(
        2048, 8192, 24, 32, 32, vocab_size=49152, rope_theta=130000, tie_word_embeddings=True
    ),
    "DeepSeek-R1-Distill-Llama-8B": _llama(4096, 14336, 32, 32, 8, **_llama3_rope(8.0), eos_token_id=128001),
    "Mistral-7B-v0.1": _mistral(4096, 14336, 32, 32, 8, sliding_window=4096, vocab_size=32000, rope_theta=10000.0),
    "Mistral-7B-Instruct-v0.3": _mistral(4096, 14336, 32, 32, 8, sliding_window=None, vocab_size=32768),
    "Mistral-Nemo-Base-2407": _mistral(
        5120, 14336, 40, 32, 8, head_dim=128, sliding_window=None, vocab_size=131072, max_position_embeddings=128000
    ),
    "Qwen2.5-0.5B": _qwen("qwen2", 896, 4864, 24, 14, 2, tie_word_embeddings=True, sliding_window=32768),
    "Qwen2.5-7B-Instruct": _qwen("qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064, sliding_window=131072),
    "Qwen2-7B-Instruct": _qwen("qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064, sliding_window=131072),
    "Qwen2.5-72B": _qwen(
        "qwen2", 8192, 29568, 80, 64, 8, vocab_size=152064, max_window_layers=70, sliding_window=131072
    ),
    "Qwen2.5-7B-Instruct-1M": _qwen(
        "qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064, sliding_window=32768, rope_theta=1e7
    ),
    "DeepSeek-R1-Distill-Qwen-7B": _qwen(
        "qwen2", 3584, 18944, 28, 28, 4, vocab_size=152064, sliding_window=4096, **_R1
    ),
    "Qwen3-0.6B": _qwen(
        "qwen3", 1024, 3072, 28, 16, 8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40960
    ),
    "Qwen3-8B": _qwen("qwen3", 4096, 12288, 36, 32, 8, head_dim=128, max_position_embeddings=40960),
    "Qwen3-32B": _qwen("qwen3", 5120, 25600, 64, 64, 8, head_dim=128, max_position_embeddings=40960),
    "SmolLM3-3B": _sizes("smollm3", 2048, 11008, 36, 16, 4)
    | {
        "hidden_act": "silu",
        "layer_types": ["full_attention"] * 36,
        "max_position_embeddings": 65536,
        "max_window_layers": 28,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "vocab_size": 128256,
        "pad_token_id": 128004,
    },
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4, 256, 256),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8, 256, 256),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, 128, 144),
    "gemma-3-1b-pt": _gemma3(1152, 6912, 26, 4, 1, 512, sliding_window_pattern=6),
    "gemma-3-270m": _gemma3(
        640,
        2048,
        18,
        4,
        1,
        512,
        _sliding_window_pattern=6,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
        use_bidirectional_attention=False,
    ),
    "Phi-3-mini-4k-instruct": _phi3(3072, 8192, 32, 32, 32, sliding_window=2047, max_position_embeddings=4096),
    "Phi-3-mini-128k-instruct": _phi3(
        3072, 8192, 32, 32, 32, sliding_window=262144, max_position_embeddings=131072, rope_scaling=_longrope(48)
    ),
    "Phi-3-medium-4k-instruct": _phi3(5120, 17920, 40, 40, 10, sliding_window=2047, max_position_embeddings=4096),
    "phi-4": _phi3(
        5120,
        17920,
        40,
        40,
        10,
        sliding_window=None,
        max_position_embeddings=16384,
        rope_theta=250000,
        vocab_size=100352,
    )
    | {
        "original_max_position_embeddings": 16384,
        "bos_token_id": 100257,
        "eos_token_id": 100265,
        "pad_token_id": 100349,
    },
    "Phi-4-mini-instruct": _phi3(
        3072,
        8192,
        32,
        24,
        8,
        sliding_window=262144,
        max_position_embeddings=131072,
        partial_rotary_factor=0.75,
        rope_scaling=_longrope(48),
        vocab_size=200064,
        tie_word_embeddings=True,
    )
    | {"bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999},
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
}
"""Model → its config."""
