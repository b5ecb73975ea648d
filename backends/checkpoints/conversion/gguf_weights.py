"""A GGUF file's tensors under their transformers names, dequantised, with what llama.cpp's writer did to them undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ....protos.errors import InvalidArgument
from .gguf_header import GgufHeader, GgufTensor

__all__ = ["Weight", "weights_of"]

Floats = npt.NDArray[np.float32]

_DECODER = {
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
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def _without(names: dict[str, str], *left_out: str) -> dict[str, str]:
    return {name: value for name, value in names.items() if name not in left_out}


_MIXTURE = _without(_DECODER, "ffn_gate", "ffn_up", "ffn_down") | _EXPERTS
_MODULES: dict[str, dict[str, str]] = {
    "gemma2": _DECODER | _FOUR_NORMS,
    "gemma3": _DECODER | _HEAD_NORMS | _FOUR_NORMS,
    "gpt2": _GPT2,
    "llama": _DECODER,
    "phi3": _without(_DECODER, "attn_q", "attn_k", "attn_v", "ffn_gate") | _FUSED,
    "qwen2": _DECODER,
    "qwen2moe": _MIXTURE | _SHARED_EXPERT,
    "qwen3": _DECODER | _HEAD_NORMS,
    "qwen3moe": _MIXTURE | _HEAD_NORMS,
}
"""Architecture -> its modules; all but the head must be there."""
_BIASED = {
    "gpt2": set(_GPT2) - {"token_embd", "position_embd", "output"},
    "qwen2": {"attn_q", "attn_k", "attn_v"},
    "qwen2moe": {"attn_q", "attn_k", "attn_v"},
}
"""… and those of them that have a bias."""
_LAYERS = {"gpt2": "transformer.h"}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the checkpoint folder."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Floats]
    """Its values, of this shape."""


def weights_of(header: GgufHeader) -> list[Weight]:
    """Every weight of the model. Raises InvalidArgument where the file has others than the architecture, or lacks some."""
    modules = _MODULES[header.architecture]
    layers = _LAYERS.get(header.architecture, "model.layers")
    found: list[Weight] = []
    seen: dict[str, set[tuple[str | None, str]]] = {"weight": set(), "bias": set()}
    for tensor in header.tensors:
        if tensor.name == "rope_freqs.weight":  # the config says it
            continue
        match = _NAME.fullmatch(tensor.name)
        if match is None or match[2] not in modules:
            raise InvalidArgument(
                f"{header.path.name} holds a tensor {tensor.name}, for which a {header.architecture} checkpoint has no place"
            )
        layer, module, kind = match.groups()
        seen[kind].add((layer, module))
        prefix = f"{layers}.{layer}." if layer is not None else ""
        found += _placed(header, tensor, module, f"{prefix}{modules[module]}.{kind}")
    n_layers = int(header.get(f"{header.architecture}.block_count"))
    top = {"token_embd", "position_embd", "output_norm", "output"} & set(modules)
    _check(header, "weight", seen["weight"] | {(None, "output")}, top, set(modules) - top, n_layers)
    biased = _BIASED.get(header.architecture, set[str]())
    if header.architecture == "llama" and ("0", "attn_q") in seen["bias"]:
        biased = {"attn_q", "attn_k", "attn_v", "attn_output"}
    _check(header, "bias", seen["bias"], biased & top, biased - top, n_layers)
    return sorted(found, key=lambda weight: weight.name)  # as safetensors' own writer has them


def _check(
    header: GgufHeader, kind: str, seen: set[tuple[str | None, str]], top: set[str], inner: set[str], n_layers: int
) -> None:
    """Whether a file holds this kind of tensors of these modules, and of no others."""
    wanted = {(None, name) for name in top} | {(str(i), name) for i in range(n_layers) for name in inner}
    told = [
        sorted(f"blk.{i}.{m}.{kind}" if i else f"{m}.{kind}" for i, m in some)
        for some in (wanted - seen, seen - wanted)
    ]
    if told[0]:
        raise InvalidArgument(f"{header.path.name} lacks {len(told[0])} tensors, {told[0][0]} first; fetch it again")
    if told[1]:
        raise InvalidArgument(
            f"{header.path.name} holds a tensor {told[1][0]}, for which a {header.architecture} checkpoint of "
            f"{n_layers} layers has no place"
        )


def _placed(header: GgufHeader, tensor: GgufTensor, module: str, name: str) -> Iterator[Weight]:
    def values() -> Floats:
        return header.weight(tensor)

    architecture, shape = header.architecture, tensor.shape
    if module.endswith("_exps"):
        experts = _Experts(values, shape[0])
        for i in range(shape[0]):
            yield Weight(name.format(i), shape[1:], partial(experts.take, i))
    elif architecture == "llama" and module in ("attn_q", "attn_k"):
        key = "attention.head_count" + ("_kv" if module == "attn_k" else "")
        n_heads = int(header.values.get(f"llama.{key}") or header.get("llama.attention.head_count"))
        yield Weight(name, shape, lambda: _unpermute(values(), n_heads))
    elif architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        yield Weight(name, shape, lambda: values() - np.float32(1.0))  # transformers adds it
    elif architecture == "gpt2" and len(shape) == 2 and module.startswith(("attn", "ffn")):
        yield Weight(name, shape[::-1], lambda: np.ascontiguousarray(values().T))
    elif module == "ffn_gate_inp_shexp" and len(shape) == 1:
        yield Weight(name, (1, *shape), lambda: values()[None])
    else:
        yield Weight(name, shape, values)


class _Experts:
    """The experts of one tensor, read once and kept until each was taken."""

    def __init__(self, read: Callable[[], Floats], n: int) -> None:
        self._read, self._left = read, n
        self._held: Floats | None = None

    def take(self, i: int) -> Floats:
        held = self._held if self._held is not None else self._read()
        self._left -= 1
        self._held = held if self._left else None
        return held[i]


def _unpermute(weight: Floats, n_heads: int) -> Floats:
    """Undo llama.cpp's order of rows in q and k, which pairs the two halves of each head for its rotary kernel."""
    n_rows = weight.shape[0]
    paired = weight.reshape(n_heads, n_rows // n_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(weight.shape))
