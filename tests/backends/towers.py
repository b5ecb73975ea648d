"""Tiny checkpoints of models that also see or hear, saved as they are published, for the tests of text towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForMultimodalLM

from probewire.backends.checkpoints.text_config import text_config
from probewire.backends.hooks.base import Backend
from probewire.backends.model.weights import CheckpointWeights
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import run
from tests.tiny_models import VOCAB_SIZE, write_tokenizer

__all__ = [
    "TOKENS",
    "WRAPPERS",
    "bare_model",
    "config_of",
    "configured",
    "copied",
    "error_of",
    "logits",
    "logits_of",
    "rename_weights",
    "write_wrapper",
]

TOKENS = list(range(10, 34))

_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_HEADS = {**_TEXT, "head_dim": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
_QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 32,
    "out_hidden_size": 64,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 1,
    "intermediate_size": 32,
}
_MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_GLM_ROPE = {**_MROPE, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_DELTA: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
_CLIP = {"vision_config": {**_VISION, "model_type": "clip_vision_model"}}

WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({**_HEADS, "sliding_window": 8}, {"vision_config": _VISION, "mm_tokens_per_image": 4}),
    "gemma4": (
        {
            **_HEADS,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB_SIZE,
            "num_kv_shared_layers": 0,
        },
        {"vision_config": {**_VISION, "head_dim": 16, "num_key_value_heads": 2}, "audio_config": None},
    ),
    "mistral3": (
        {**_HEADS, "model_type": "mistral"},
        {"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 16}},
    ),
    "llava": ({**_TEXT, "model_type": "llama"}, _CLIP),
    "llava_next": ({**_TEXT, "model_type": "llama"}, _CLIP),
    "idefics3": ({**_TEXT, "model_type": "llama"}, {"vision_config": _VISION, "scale_factor": 1}),
    "smolvlm": ({**_TEXT, "model_type": "llama"}, {"vision_config": _VISION, "scale_factor": 1}),
    "internvl": (
        {**_TEXT, "model_type": "qwen2"},
        {"vision_config": {**_VISION, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [8, 8]}},
    ),
    "qwen2_vl": (
        {**_TEXT, "rope_parameters": _MROPE},
        {
            "vision_config": {
                "depth": 1,
                "embed_dim": 32,
                "hidden_size": 64,
                "num_heads": 2,
                "patch_size": 8,
                "spatial_merge_size": 1,
            }
        },
    ),
    "qwen2_5_vl": ({**_TEXT, "rope_parameters": _MROPE}, {"vision_config": _QWEN_VISION}),
    "qwen3_vl": (
        {**_HEADS, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}},
    ),
    "qwen3_vl_moe": (
        {**_HEADS, **_EXPERTS, "moe_intermediate_size": 24, "rope_parameters": {**_MROPE, "mrope_interleaved": True}},
        {"vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}},
    ),
    "glm4v": (
        {**_TEXT, "rope_parameters": _GLM_ROPE},
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "num_heads": 2,
                "patch_size": 8,
                "intermediate_size": 32,
                "image_size": 16,
            }
        },
    ),
    "glm4v_moe": (
        {
            **_HEADS,
            "rope_parameters": _GLM_ROPE,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "num_heads": 2,
                "patch_size": 8,
                "intermediate_size": 32,
                "image_size": 16,
            }
        },
    ),
    "llama4": (
        {**_HEADS, "intermediate_size_mlp": 96, "num_local_experts": 2, "attention_chunk_size": 32},
        {
            "vision_config": {
                **_VISION,
                "vision_output_dim": 32,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
            }
        },
    ),
    "lfm2_vl": (
        {**_TEXT, "model_type": "lfm2", "layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
        {"vision_config": {**_VISION, "model_type": "siglip2_vision_model", "num_patches": 4}},
    ),
    "qwen3_5": ({**_HEADS, **_DELTA}, {"vision_config": _QWEN_VISION}),
    "qwen3_5_moe": (
        {**_HEADS, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32},
        {"vision_config": _QWEN_VISION},
    ),
    "gemma4_unified": (
        {
            **_HEADS,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 8,
            "global_head_dim": 32,
            "num_kv_shared_layers": 0,
        },
        {},
    ),
    "glm46v": (
        {**_HEADS, "model_type": "glm4v_text", "rope_parameters": _GLM_ROPE},
        {
            "vision_config": {
                "depth": 1,
                "hidden_size": 32,
                "out_hidden_size": 64,
                "num_heads": 2,
                "patch_size": 8,
                "intermediate_size": 32,
                "image_size": 16,
            }
        },
    ),
    "llava_onevision": (
        {**_TEXT, "model_type": "qwen2"},
        {"vision_config": {**_VISION, "model_type": "siglip_vision_model"}},
    ),
    "voxtral": (
        {**_HEADS, "model_type": "llama"},
        {
            "audio_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_mel_bins": 8,
            }
        },
    ),
    "qwen2_audio": (
        {**_TEXT, "model_type": "qwen2"},
        {
            "audio_config": {
                "d_model": 32,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 32,
                "num_mel_bins": 8,
            }
        },
    ),
}
"""Model type → fields of its text model, and those beside it."""


def _auto(config: Any) -> Any:
    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForMultimodalLM


def write_wrapper(kind: str, folder: Path, **text: Any) -> Path:
    """A checkpoint with random weights, large enough that nothing vanishes."""
    fields, beside = WRAPPERS[kind]
    config: Any = AutoConfig.for_model(kind, text_config={**fields, **text}, **beside)
    torch.manual_seed(0)
    model: Any = _auto(config).from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def logits_of(folder: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """[row, vocab], as the whole model computes them from text alone."""
    config: Any = AutoConfig.from_pretrained(folder)
    model: Any = _auto(config).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    ids = torch.tensor([tokens])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0].numpy()


def rename_weights(folder: Path, prefixes: dict[str, str]) -> None:
    """Give weights the names of another age: old beginning → new one, the first that fits."""
    found = load_file(folder / "model.safetensors")

    def renamed(name: str) -> str:
        return next((new + name[len(old) :] for old, new in prefixes.items() if name.startswith(old)), name)

    weights = {renamed(name): value.clone() for name, value in found.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def config_of(folder: Path) -> dict[str, Any]:
    """What config.json holds."""
    return json.loads((folder / "config.json").read_text())


def logits(backend: Backend) -> np.ndarray[Any, Any]:
    """[row, vocab] of TOKENS, as a backend gives them."""
    return run(backend, TOKENS, Plan((Hook("logits", capture=Capture()),)))[0, "logits", ""].values


def error_of(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """Relative to the largest."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def copied(folder: Path, to: Path) -> Path:
    """A checkpoint that a test may change."""
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def configured(folder: Path, **fields: Any) -> Path:
    """With other fields in its config.json."""
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **fields}))
    return folder


def bare_model(folder: Path, to: Path) -> Path:
    """The text model saved by itself."""
    weights = CheckpointWeights(folder)
    tensors = {name: torch.from_numpy(weights.get(name).copy()) for name in weights.names()}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    for file in folder.glob("tokenizer*"):
        (to / file.name).write_bytes(file.read_bytes())
    (to / "config.json").write_text(text_config(folder).to_json_string(use_diff=False))
    return to
