"""`config.json` from a GGUF file's header. A key that is not understood is refused: it would change what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ....protos.errors import InvalidArgument
from .gguf_header import GgufHeader

__all__ = ["ARCHITECTURES", "config_of", "special_ids"]

_UNREAD = object()
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every release of Llama 3.1 and later has; a GGUF file holds what follows from it."""
_ABSENT_FLAGS = {
    "expert_count": 0,
    "attention.causal": True,
    "rope.scaling.finetuned": None,
    "mm.tokens_per_image": None,
}
"""Keys that say nothing where they have this value; None: whatever value."""


class _Keys:
    """The header's keys of one architecture, each of which must be read by somebody."""

    def __init__(self, header: GgufHeader) -> None:
        prefix = f"{header.architecture}."
        self.header = header
        self._left = {key.removeprefix(prefix): value for key, value in header.values.items() if key.startswith(prefix)}

    def take(self, key: str, otherwise: Any = _UNREAD) -> Any:
        if key in self._left:
            return self._left.pop(key)
        return self.header.get(f"{self.header.architecture}.{key}") if otherwise is _UNREAD else otherwise

    def count(self, key: str, otherwise: Any = _UNREAD) -> int:
        """A number; also where it is written once for each layer, if all are equal."""
        found = self.take(key, otherwise)
        values = set(found) if isinstance(found, list) else {found}
        if len(values) != 1:
            raise InvalidArgument(f"{self._name} gives {key} layer by layer ({found}), which is not read; {_HUB}")
        return int(values.pop())

    def real(self, key: str) -> float:
        """A number as its writer meant it: float32's 9.999999747e-06 stands for 1e-05."""
        return float(f"{float(self.take(key)):.6g}")

    def check_all_read(self) -> None:
        for key, harmless in _ABSENT_FLAGS.items():
            if key in self._left and harmless in (None, self._left[key]):
                del self._left[key]
        if self._left:
            told = ", ".join(f"{key} = {str(value)[:40]}" for key, value in sorted(self._left.items())[:5])
            raise InvalidArgument(
                f"{self._name} says of its {self.header.architecture} model what is not understood here ({told}), "
                f"so its numbers could be wrong; {_HUB}"
            )

    def has(self, tensor: str) -> bool:
        return any(one.name == tensor for one in self.header.tensors)

    @property
    def _name(self) -> str:
        return self.header.path.name


_HUB = "take the model as safetensors"


def config_of(header: GgufHeader) -> dict[str, Any]:
    """What transformers and mlx-lm are to build. Raises InvalidArgument for what cannot be told exactly."""
    make = ARCHITECTURES.get(header.architecture)
    if make is None:
        raise InvalidArgument(
            f"{header.path.name} holds a model of the architecture {header.architecture!r}, which is not read from GGUF; "
            f"read are {', '.join(sorted(ARCHITECTURES))}: {_HUB}"
        )
    keys = _Keys(header)
    config = make(keys)
    keys.check_all_read()
    n_tokens = len(header.get("tokenizer.ggml.tokens"))
    if n_tokens > config["vocab_size"]:
        raise InvalidArgument(
            f"{header.path.name} lists {n_tokens} tokens and embeds {config['vocab_size']}; it is damaged or not one model"
        )
    return config


def special_ids(header: GgufHeader) -> dict[str, int]:
    """Token ids as `config.json` names them, those that the file gives."""
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {name: header.values.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: int(value) for name, value in found.items() if value is not None}


def _llama(keys: _Keys) -> dict[str, Any]:
    d_model, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    theta, d_head = float(keys.take("rope.freq_base", 10000.0)), _d_head(keys, d_model, n_heads)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": keys.has("blk.0.attn_q.bias"),  # then q, k, v and the output have one
        "attention_dropout": 0.0,
        **special_ids(keys.header),
        "head_dim": d_head,
        "hidden_act": "silu",
        "hidden_size": d_model,
        "initializer_range": 0.02,
        "intermediate_size": keys.count("feed_forward_length"),
        "max_position_embeddings": keys.count("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": n_heads,
        "num_hidden_layers": keys.count("block_count"),
        "num_key_value_heads": keys.count("attention.head_count_kv", n_heads),
        "pretraining_tp": 1,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(keys, theta, d_head),
        "rope_theta": theta,
        "tie_word_embeddings": not keys.has("output.weight"),
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": _vocab_size(keys),
    }


def _decoder(keys: _Keys, class_name: str, model_type: str, **more: Any) -> dict[str, Any]:
    """What the architectures after Llama have in common with it."""
    n_heads, d_model = keys.count("attention.head_count"), keys.count("embedding_length")
    d_head = _d_head(keys, d_model, n_heads)
    theta = float(keys.take("rope.freq_base", 10000.0))
    return {
        "architectures": [class_name],
        **special_ids(keys.header),
        "head_dim": d_head,
        "hidden_size": d_model,
        "intermediate_size": keys.count("feed_forward_length"),
        "max_position_embeddings": keys.count("context_length"),
        "model_type": model_type,
        "num_attention_heads": n_heads,
        "num_hidden_layers": keys.count("block_count"),
        "num_key_value_heads": keys.count("attention.head_count_kv", n_heads),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(keys, theta, d_head),
        "rope_theta": theta,
        "tie_word_embeddings": not keys.has("output.weight"),
        "torch_dtype": "float32",
        "vocab_size": _vocab_size(keys),
        **more,
    }


def _qwen2(keys: _Keys) -> dict[str, Any]:
    return _decoder(keys, "Qwen2ForCausalLM", "qwen2", hidden_act="silu", use_sliding_window=False)


def _qwen3(keys: _Keys) -> dict[str, Any]:
    plain = {"attention_bias": False, "use_sliding_window": False, "hidden_act": "silu"}
    return _decoder(keys, "Qwen3ForCausalLM", "qwen3", **plain)


def _qwen3_moe(keys: _Keys) -> dict[str, Any]:
    return _decoder(
        keys,
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        **_experts(keys),
        attention_bias=False,
        hidden_act="silu",
        norm_topk_prob=True,  # llama.cpp knows no other
    )


def _qwen2_moe(keys: _Keys) -> dict[str, Any]:
    return _decoder(
        keys,
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        **_experts(keys),
        hidden_act="silu",
        norm_topk_prob=False,  # llama.cpp knows no other
        shared_expert_intermediate_size=keys.count("expert_shared_feed_forward_length"),
    )


def _experts(keys: _Keys) -> dict[str, Any]:
    return {
        "num_experts": keys.count("expert_count"),
        "num_experts_per_tok": keys.count("expert_used_count"),
        "moe_intermediate_size": keys.count("expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma2(keys: _Keys) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": keys.real("attn_logit_softcapping"),
        "final_logit_softcapping": keys.real("final_logit_softcapping"),
    }
    return _gemma(_decoder(keys, "Gemma2ForCausalLM", "gemma2", **caps), keys, n_layers_of_27b=46)


def _gemma3(keys: _Keys) -> dict[str, Any]:
    local = {"rope_theta": float(keys.take("rope.freq_base_swa", 10000.0)), "rope_type": "default"}
    period = keys.count("attention.sliding_window_pattern", 6)
    config = _gemma(_decoder(keys, "Gemma3ForCausalLM", "gemma3_text"), keys, n_layers_of_27b=62)
    whole = "full_attention", config["rope_parameters"]  # scaling is for the layers that see everything
    kinds = ["sliding_attention" if (i + 1) % period else whole[0] for i in range(config["num_hidden_layers"])]
    cap = keys.take("final_logit_softcapping", None)
    return {
        **config,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None if not cap else float(cap),
        "layer_types": kinds,
        "rope_local_base_freq": local["rope_theta"],
        "rope_parameters": {whole[0]: whole[1], "sliding_attention": local},
        "sliding_window_pattern": period,
    }


def _gemma(config: dict[str, Any], keys: _Keys, n_layers_of_27b: int) -> dict[str, Any]:
    """The 27B models divide by another number than their heads' width; no key says so, llama.cpp knows them by their depth."""
    scale = keys.take("attention.scale", None)
    by_head = config["hidden_size"] // config["num_attention_heads"]
    root = by_head if config["num_hidden_layers"] == n_layers_of_27b else config["head_dim"]
    return {
        **config,
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": root if scale is None else round(float(scale) ** -2),
        "sliding_window": keys.count("attention.sliding_window"),
    }


def _phi3(keys: _Keys) -> dict[str, Any]:
    trained = keys.take("rope.scaling.original_context_length", None)
    keys.take("rope.scaling.attn_factor", None)  # of the long ropes, which are refused below
    if any(tensor.name.startswith("rope_factors_") for tensor in keys.header.tensors):
        raise InvalidArgument(f"{keys.header.path.name} has long-rope factors, which are not read from GGUF; {_HUB}")
    config = _decoder(keys, "Phi3ForCausalLM", "phi3", hidden_act="silu", attention_bias=False)
    window = keys.take("attention.sliding_window", None)
    return {
        **config,
        "original_max_position_embeddings": int(trained or config["max_position_embeddings"]),
        "sliding_window": int(window) if window else None,
        "pad_token_id": config.get("pad_token_id"),  # transformers' own is beyond small vocabularies
    }


def _gpt2(keys: _Keys) -> dict[str, Any]:
    d_model = keys.count("embedding_length")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        **special_ids(keys.header),
        "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon"),
        "model_type": "gpt2",
        "n_embd": d_model,
        "n_head": keys.count("attention.head_count"),
        "n_inner": keys.count("feed_forward_length", 4 * d_model),
        "n_layer": keys.count("block_count"),
        "n_positions": keys.count("context_length"),
        "tie_word_embeddings": not keys.has("output.weight"),
        "torch_dtype": "float32",
        "vocab_size": _vocab_size(keys),
    }


def _d_head(keys: _Keys, d_model: int, n_heads: int) -> int:
    """The width of a head, all of which is rotated."""
    width = keys.count("attention.key_length", d_model // n_heads)
    rotated, values = keys.count("rope.dimension_count", width), keys.count("attention.value_length", width)
    if rotated != width or values != width:
        raise InvalidArgument(
            f"{keys.header.path.name} has keys of {width}, values of {values} and {rotated} rotated coordinates a head; "
            f"only where the three are equal is it read; {_HUB}"
        )
    return width


def _vocab_size(keys: _Keys) -> int:
    rows = next((tensor.shape[0] for tensor in keys.header.tensors if tensor.name == "token_embd.weight"), 0)
    keys.take("vocab_size", rows)  # some writers count tokens, some rows
    return rows


def _rope(keys: _Keys, theta: float, d_head: int) -> dict[str, Any]:
    plain = {"rope_theta": theta, "rope_type": "default"}
    kind, factor = keys.take("rope.scaling.type", "none"), keys.take("rope.scaling.factor", None)
    trained = keys.take("rope.scaling.original_context_length", None)
    if keys.has("rope_freqs.weight"):
        return {**plain, **_llama3(keys, theta, d_head)}
    if kind == "none" or not factor or float(factor) == 1.0:
        return plain
    if kind == "linear":
        return {**plain, "rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and trained:
        return {**plain, "rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": int(trained)}
    raise InvalidArgument(
        f"{keys.header.path.name} stretches positions by {kind!r}, which is not read from GGUF; {_HUB}"
    )


def _llama3(keys: _Keys, theta: float, d_head: int) -> dict[str, Any]:
    """The settings from which the file's divisors of frequencies follow."""
    tensor = next(one for one in keys.header.tensors if one.name == "rope_freqs.weight")
    stored = keys.header.weight(tensor).astype(np.float64)
    settings = {**_LLAMA3, "factor": float(stored.max())}
    turns = settings["original_max_position_embeddings"] * theta ** (-np.arange(0, d_head, 2) / d_head) / (2 * np.pi)
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - share) / settings["factor"] + share)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise InvalidArgument(
            f"{keys.header.path.name} divides its rotary frequencies by other numbers than Llama 3's, which no config.json "
            f"can say; {_HUB}"
        )
    return {**settings, "rope_type": "llama3"}


ARCHITECTURES: Mapping[str, Callable[[_Keys], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "llama": _llama,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3_moe,
}
"""llama.cpp's name -> what makes its config; each is held against transformers in tests."""
