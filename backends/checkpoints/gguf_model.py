"""The weights and the architecture inside a llama GGUF file, as a Hugging Face checkpoint has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ...protos.errors import FailedPrecondition
from .progress import Progress, Report

__all__ = ["GgufModel"]

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's module names -> transformers'."""

_FLOAT32_BYTES = 4


class GgufModel:
    """One GGUF file, read lazily."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise FailedPrecondition(
                "the default model comes as a GGUF file, which needs the package gguf: pip install 'probewire[server]'"
            ) from error
        self._reader = gguf.GGUFReader(path)
        if self.metadata("general.architecture") != "llama":
            raise FailedPrecondition(
                f"{path.name} holds a {self.metadata('general.architecture')} model; only llama can be dequantised"
            )

    def metadata(self, key: str) -> Any:
        """One value of the file's header."""
        field = self._reader.get_field(key)
        if field is None:
            raise FailedPrecondition(f"the GGUF file has no {key}; it was not written for this model")
        return field.contents()

    def tensors(self, report: Report) -> dict[str, npt.NDArray[np.float32]]:
        """Every weight in float32, by its transformers name."""
        heads = {
            "attn_q": int(self._llama("attention.head_count")),
            "attn_k": int(self._llama("attention.head_count_kv")),
        }
        total = sum(int(tensor.n_elements) * _FLOAT32_BYTES for tensor in self._reader.tensors)
        tensors: dict[str, npt.NDArray[np.float32]] = {}
        done = 0
        for name, value in self._dequantised():
            module = name.removesuffix(".weight").rpartition(".")[2]
            tensors[_transformers_name(name)] = _unpermute(value, heads[module]) if module in heads else value
            done += value.nbytes
            report(Progress("dequantise", done, total))
        return tensors

    def config(self) -> dict[str, Any]:
        """`config.json`, with the base of the rotary embedding where transformers and where mlx-lm look for it."""
        d_model, n_heads = int(self._llama("embedding_length")), int(self._llama("attention.head_count"))
        rope_theta = float(self._llama("rope.freq_base"))
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            **self.special_ids(),
            "head_dim": int(self._llama("rope.dimension_count")),
            "hidden_act": "silu",
            "hidden_size": d_model,
            # 1/24: what the upstream model was initialised with.
            "initializer_range": 0.041666666666666664,
            "intermediate_size": int(self._llama("feed_forward_length")),
            "max_position_embeddings": int(self._llama("context_length")),
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": n_heads,
            "num_hidden_layers": int(self._llama("block_count")),
            "num_key_value_heads": int(self._llama("attention.head_count_kv")),
            "pretraining_tp": 1,
            # The header stores float32: 9.999999747e-06 stands for 1e-05.
            "rms_norm_eps": float(f"{self._llama('attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
            "rope_theta": rope_theta,
            "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in self._reader.tensors),
            "torch_dtype": "float32",
            "use_cache": True,
            "vocab_size": len(self.metadata("tokenizer.ggml.tokens")),
        }

    def special_ids(self) -> dict[str, int]:
        """Token ids as `config.json` and `generation_config.json` name them."""
        keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        return {name: int(self.metadata(f"tokenizer.ggml.{key}_token_id")) for name, key in keys.items()}

    def _llama(self, key: str) -> Any:
        return self.metadata(f"llama.{key}")

    def _dequantised(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        from gguf.quants import dequantize

        for tensor in self._reader.tensors:
            yield tensor.name, cast("Any", dequantize(tensor.data, tensor.tensor_type)).astype(np.float32, copy=False)


def _transformers_name(name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?([a-z_]+)\.weight", name)
    if match is None or match[2] not in _NAMES:
        raise FailedPrecondition(f"the GGUF file holds a tensor {name}, which a llama checkpoint has no place for")
    layer = f"model.layers.{match[1]}." if match[1] is not None else ""
    return f"{layer}{_NAMES[match[2]]}.weight"


def _unpermute(weight: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's order of rows in q and k, which pairs the two halves of each head for its rotary kernel."""
    n_rows = weight.shape[0]
    paired = weight.reshape(n_heads, n_rows // n_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(weight.shape))
