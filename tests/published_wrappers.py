"""What the config.json of published models that also see says of their text models, as written there; see published.py."""

from __future__ import annotations

from typing import Any

__all__ = ["PUBLISHED_WRAPPERS"]

_LLAVA = "language_model.model.embed_tokens.weight"
_FLAT = "model.embed_tokens.weight"
_QWEN: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1280},
}


def _gemma3(**text: Any) -> dict[str, Any]:
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    return {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {"model_type": "gemma3_text", **rope, **text},
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
    }


PUBLISHED_WRAPPERS: dict[str, tuple[dict[str, Any], str]] = {
    "gemma-3-4b-it": (_gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34), _LLAVA),
    "gemma-3-27b-it": (
        _gemma3(
            head_dim=128,
            hidden_size=5376,
            intermediate_size=21504,
            num_attention_heads=32,
            num_hidden_layers=62,
            num_key_value_heads=16,
            query_pre_attn_scalar=168,
        ),
        _LLAVA,
    ),
    "Mistral-Small-3.1-24B-Instruct-2503": (
        {
            "model_type": "mistral3",
            "text_config": {
                "model_type": "mistral",
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 5120,
                "intermediate_size": 32768,
                "max_position_embeddings": 131072,
                "num_attention_heads": 32,
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000000.0,
                "sliding_window": None,
                "vocab_size": 131072,
            },
            "torch_dtype": "bfloat16",
            "vision_config": {"model_type": "pixtral"},
        },
        _LLAVA,
    ),
    "llava-1.5-7b-hf": (
        {
            "model_type": "llava",
            "text_config": {
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-05,
                "torch_dtype": "float16",
                "vocab_size": 32064,
            },
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "vision_config": {"model_type": "clip_vision_model"},
        },
        _LLAVA,
    ),
    "Qwen2-VL-2B-Instruct": (
        {
            **_QWEN,
            "model_type": "qwen2_vl",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_hidden_layers": 28,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
        _FLAT,
    ),
    "Qwen2.5-VL-7B-Instruct": (
        {
            **_QWEN,
            "model_type": "qwen2_5_vl",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_window_layers": 28,
            "num_attention_heads": 28,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "vocab_size": 152064,
        },
        _FLAT,
    ),
    "Qwen3-VL-4B-Instruct": (
        {
            "model_type": "qwen3_vl",
            "text_config": {
                "model_type": "qwen3_vl_text",
                "attention_bias": False,
                "dtype": "bfloat16",
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "max_position_embeddings": 262144,
                "num_attention_heads": 32,
                "num_hidden_layers": 36,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-06,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
                "rope_theta": 5000000,
                "tie_word_embeddings": True,
                "vocab_size": 151936,
            },
            "tie_word_embeddings": True,
            "vision_config": {"hidden_size": 1024},
        },
        "model.language_model.embed_tokens.weight",
    ),
}
"""Name → config.json, and how the file calls the embedding of words."""
