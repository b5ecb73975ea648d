"""Tiny models written as GGUF as llama.cpp's converter writes them, with its own map of names and its own key writer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

__all__ = ["MODELS", "PLAIN_VOCABULARY", "Written", "tiny_model", "write_gguf"]

_DIMS: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_THETA = {"rope_theta": 5000.0, "rope_type": "default"}
_LLAMA3 = {
    **_THETA,
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
_WINDOW = {"sliding_window": 8, "hidden_activation": "gelu_pytorch_tanh"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_DIMS, "rope_parameters": _THETA, "tie_word_embeddings": True}),
    "llama_untied_biased": ("llama", {**_DIMS, "rope_parameters": _THETA, "attention_bias": True}),
    "llama_llama3": ("llama", {**_DIMS, "rope_parameters": _LLAMA3, "head_dim": 32}),
    "llama_linear": ("llama", {**_DIMS, "rope_parameters": {**_THETA, "rope_type": "linear", "factor": 4.0}}),
    "qwen2": ("qwen2", {**_DIMS, "rope_parameters": _THETA, "tie_word_embeddings": True}),
    "qwen2_moe": (
        "qwen2moe",
        {
            **_DIMS,
            **_MIXTURE,
            "rope_parameters": _THETA,
            "shared_expert_intermediate_size": 48,
            "norm_topk_prob": False,
        },
    ),
    "qwen3": ("qwen3", {**_DIMS, "head_dim": 24, "rope_parameters": _THETA}),
    "qwen3_yarn": (
        "qwen3",
        {
            **_DIMS,
            "head_dim": 24,
            "rope_parameters": {**_THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "qwen3_moe": (
        "qwen3moe",
        {**_DIMS, **_MIXTURE, "head_dim": 24, "rope_parameters": _THETA, "norm_topk_prob": True},
    ),
    "gemma2": (
        "gemma2",
        {
            **_DIMS,
            **_WINDOW,
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "rope_parameters": _THETA,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3_text": (
        "gemma3",
        {
            **_DIMS,
            **_WINDOW,
            "num_hidden_layers": 7,  # one more than the period
            "head_dim": 24,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_theta": 90000.0, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
        },
    ),
    "phi3": ("phi3", {**_DIMS, "rope_parameters": _THETA, "pad_token_id": None, "sliding_window": 9}),
    "gpt2": ("gpt2", {"vocab_size": 300, "n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128}),
}
"""Name -> llama.cpp's architecture, and a config of transformers' model type (the name without what follows `_` twice)."""
_TYPE = {"llama_untied_biased": "llama", "llama_llama3": "llama", "llama_linear": "llama", "qwen3_yarn": "qwen3"}
Written = dict[str, Any]


def tiny_model(name: str) -> Any:
    """A model of seeded weights, norms and biases among them."""
    config = AutoConfig.for_model(_TYPE.get(name, name), **MODELS[name][1])
    config.bos_token_id, config.eos_token_id = 1, 2
    config.tie_word_embeddings = config.tie_word_embeddings and "untied" not in name
    torch.manual_seed(len(name))
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.ndim == 1 else 0.0))
    return model


def _letters() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


PLAIN_VOCABULARY: dict[str, Any] = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["<unk>", "<bos>", "<eos>", *_letters(), "he", "Ġt", "Ġthe"],
    "token_type": [3] * 3 + [1] * 259,
    "merges": ["h e", "Ġ t", "Ġt he"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "add_bos_token": True,
}


def write_gguf(
    path: Path, model: Any, architecture: str, vocabulary: Mapping[str, Any] = PLAIN_VOCABULARY, **changes: Any
) -> Path:
    """`changes`: keys of the architecture, `None` leaves one out; with `general__…` those of the file."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_keys(model.config.to_dict(), architecture), **changes}.items():
        name = key.replace("general__", "general.") if key.startswith("general__") else f"{architecture}.{key}"
        if value is not None:
            _add(writer, name.replace("__", "."), value)
    for key, value in vocabulary.items():
        _add(writer, "tokenizer.chat_template" if key == "chat_template" else f"tokenizer.ggml.{key}", value)
    for name, value in _tensors(model, architecture).items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    (add.get(type(value)) or writer.add_array)(key, value)


def _keys(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    if architecture == "gpt2":
        return {
            "context_length": config["n_positions"],
            "embedding_length": config["n_embd"],
            "feed_forward_length": 4 * config["n_embd"],
            "block_count": config["n_layer"],
            "attention.head_count": config["n_head"],
            "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    rope = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    d_head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": d_head,
        "attention.value_length": d_head,
        "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": d_head if architecture in ("llama", "phi3") else None,
    }
    if rope["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if architecture.endswith("moe"):
        keys |= {
            "expert_count": config.get("num_experts") or config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
        }
    if architecture in ("gemma2", "gemma3", "phi3"):
        keys["attention.sliding_window"] = config["sliding_window"]
    if architecture == "gemma2":
        keys |= {key: config[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    if architecture == "phi3":
        keys["rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
    return keys


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray[Any, Any]]:
    config = model.config
    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for full, value in model.state_dict().items():
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for part, values in _on_disk(full, value.numpy()):
            stem, _, end = part.rpartition(".")
            name = names.get_name(stem)
            assert name is not None, part
            found[f"{name}.{end}"] = _as_llama_cpp(architecture, part, values, config)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        found["rope_freqs.weight"] = _llama3_divisors(rope, config.head_dim)
    return found


def _on_disk(name: str, value: np.ndarray[Any, Any]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """A mixture's experts as its checkpoints name them, stacked."""
    if name.endswith("experts.gate_up_proj"):
        stem, half = name.removesuffix("gate_up_proj"), value.shape[1] // 2
        return [(f"{stem}gate_proj.weight", value[:, :half]), (f"{stem}up_proj.weight", value[:, half:])]
    return [(f"{name}.weight" if name.endswith("experts.down_proj") else name, value)]


def _as_llama_cpp(architecture: str, name: str, value: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + np.float32(1.0)
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return value.T
    if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        n_heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return value.reshape(n_heads, 2, len(value) // n_heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
    return value


def _llama3_divisors(rope: dict[str, Any], d_head: int) -> np.ndarray[Any, Any]:
    """As convert_hf_to_gguf.py writes them: frequency by frequency."""
    divisors: list[float] = []
    old = rope["original_max_position_embeddings"]
    low, high = old / rope["low_freq_factor"], old / rope["high_freq_factor"]
    for i in range(0, d_head, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / d_head)
        if length < high:
            divisors.append(1.0)
        elif length > low:
            divisors.append(rope["factor"])
        else:
            smooth = (old / length - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.asarray(divisors, np.float32)
