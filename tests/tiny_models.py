"""Tiny random checkpoints, one for every family: `tiny_checkpoint("gemma2", tmp_path)`.

Written by transformers, then dressed as checkpoints on the hub are, so that transformers, mlx-lm and the reference all
load them. Every weight is drawn at random: a norm of ones or a bias of zeros would hide a forgotten norm or bias.

mlx-lm does not honour everything that these configs can say. Past the window of mistral, gemma2 and phi3 it attends to
all keys (override `sliding_window` to compare the two); it truncates gpt_oss's yarn ramp, always; it rounds gemma3's
embedding scale to bfloat16 (exact here: d_model is 64).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FAMILIES", "SPECIAL_TOKENS", "VOCAB_SIZE", "tiny_checkpoint"]

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Ids 256 … 260, after the 256 bytes."""
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_DIMS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": True,
    "original_max_position_embeddings": 4096,
}
_LOCAL_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
}


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**_DIMS, **_rope(500.0), "tie_word_embeddings": False},
    "mistral": {**_DIMS, **_rope(1000.0), "sliding_window": 8, "tie_word_embeddings": False},
    "qwen2": {**_DIMS, **_rope(2000.0), "tie_word_embeddings": True},
    "qwen3": {**_DIMS, **_rope(3000.0), "head_dim": 24, "tie_word_embeddings": False},
    "smollm3": {
        **_DIMS,
        **_rope(4000.0),
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 0, 1, 1],
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_layer": 3, "n_embd": 64, "n_head": 4, "n_positions": 512, "tie_word_embeddings": True},
    "gemma2": {
        **_DIMS,
        **_rope(700.0),
        "num_hidden_layers": 4,
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        **_DIMS,
        "num_hidden_layers": 4,
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "rope_parameters": _LOCAL_GLOBAL,
        "tie_word_embeddings": True,
    },
    "phi3": {**_DIMS, **_rope(900.0, partial_rotary_factor=0.5), "tie_word_embeddings": False},
    "gpt_oss": {
        **_DIMS,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "intermediate_size": 48,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32 * 4096,
        "sliding_window": 8,
        "rope_parameters": _YARN,
        "tie_word_embeddings": False,
    },
}
"""Family (`model_type`) → its config."""

_made: dict[str, Path] = {}


def tiny_checkpoint(family: str, folder: Path, **overrides: Any) -> Path:
    """A checkpoint of the family below `folder`; made once a session for the same overrides of its config.

    `seed` (default 0) draws other weights. `config_format="transformers5"` keeps the config as transformers 5 writes
    it (`rope_parameters`, default values left out); the default is the hub's (`rope_theta`, `rope_scaling`).
    """
    key = json.dumps([family, overrides], sort_keys=True)
    if key not in _made or not (_made[key] / "config.json").exists():
        path = folder / f"{family}-{len(_made)}"
        path.mkdir(parents=True)
        _write(family, path, dict(overrides))
        _made[key] = path
    return _made[key]


def _write(family: str, path: Path, overrides: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    seed, config_format = overrides.pop("seed", 0), overrides.pop("config_format", "hub")
    settings = {**FAMILIES[family], **overrides}
    tokens = {"vocab_size": VOCAB_SIZE, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    config = AutoConfig.for_model(family, **{**tokens, **json.loads(json.dumps(settings))})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean, std = _spread(family, name)
            weight.copy_(mean + std * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(path)
    write_tokenizer(path)
    if family == "gpt2":
        _drop_prefix(path, "transformer.")
    if family == "gpt_oss":
        _add_mlx_experts(path)
    if config_format == "hub":
        _dress_as_on_the_hub(path, family, config)


def _spread(family: str, name: str) -> tuple[float, float]:
    """Mean and deviation of a weight: large enough that no two sites look alike, small enough not to saturate."""
    if "norm" in name or ".ln_" in name:
        around_one = not family.startswith("gemma") and not name.endswith("bias")
        return (1.0 if around_one else 0.0), 0.3
    if "sinks" in name:
        return 1.0, 1.0
    if "gate_up_proj" in name and family == "gpt_oss":
        return 0.0, 0.6  # so that the clipped swiglu clips
    return 0.0, 0.2


def write_tokenizer(path: Path) -> None:
    """One byte a token, with a chat template."""
    _tokenizer().save_pretrained(path)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 256)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|eos|>",
        unk_token="<|eos|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def _drop_prefix(path: Path, prefix: str) -> None:
    """gpt2's weights on the hub carry no prefix; mlx-lm knows only those."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(path / "model.safetensors")
    renamed = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})


def _add_mlx_experts(path: Path) -> None:
    """mlx-lm reads experts from MXFP4 or from its own names alone: give each library a file that the other passes by."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").rename(path / "transformers.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "transformers.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    renamed: dict[str, Any] = {}
    for name, weight in weights.items():
        module, _, leaf = name.rpartition(".")
        kind = "bias" if leaf.endswith("_bias") else "weight"
        if ".experts." not in name:
            renamed[name] = weight
            continue
        weight = weight if kind == "bias" else weight.swapaxes(1, 2)  # [expert, out, in]
        parts = (
            {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)}
            if "gate_up" in leaf
            else {"down_proj": slice(None)}
        )
        for part, rows in parts.items():
            renamed[f"{module}.{part}.{kind}"] = np.ascontiguousarray(weight[:, rows])
    save_file(renamed, path / "model-mlx.safetensors")


def _dress_as_on_the_hub(path: Path, family: str, config: Any) -> None:
    """Old names for the rotary settings and every value written out, as mlx-lm expects."""
    file = path / "config.json"
    written = {**config.to_dict(), **json.loads(file.read_text())}
    rope = written.pop("rope_parameters", None)
    if family == "gpt2":
        written["n_ctx"] = written["n_positions"]
    elif family == "gemma3_text":
        written["rope_theta"] = rope["full_attention"].pop("rope_theta")
        written["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        written["rope_scaling"] = _scaling(rope["full_attention"])
        written["sliding_window_pattern"] = written.pop("_sliding_window_pattern")
    else:
        written["rope_theta"] = rope.pop("rope_theta")
        if family == "phi3":
            written["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
        written["rope_scaling"] = _scaling(rope)
    file.write_text(json.dumps(written, indent=2, sort_keys=True))


def _scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    return None if rope["rope_type"] == "default" else rope
