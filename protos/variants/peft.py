"""PEFT's LoRA adapters, both ways: adapter_config.json and adapter_model.safetensors.

On disk A is [r, d_in] and B [d_out, r], the product times alpha/r; here A is [d_in, r], B [r, d_out] with that in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from ..tensors import Array
from .delta import Delta
from .json_file import json_object, json_text
from .manifest import Base, Manifest
from .peft_config import PeftConfig
from .tensor_file import read_tensors, written_tensors

__all__ = ["CONFIG", "EMBEDDINGS", "WEIGHTS", "read_peft", "written_peft"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tokens_embed")
"""Last names of a token embedding's module."""
_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B)"
)
_FACTORS = {
    frozenset({"lora_A.weight", "lora_B.weight"}): False,
    frozenset({"lora_A.weight", "lora_B.weight", "lora_B.bias"}): False,
    frozenset({"lora_embedding_A", "lora_embedding_B"}): True,
}
"""What belongs together, and whether it is an embedding's."""


def read_peft(files: Mapping[str, bytes], where: str) -> tuple[dict[str, Delta], Manifest]:
    """Deltas at `module:<path>` (the token embedding's at w_embed), and what the config says. Raises InvalidArgument."""
    told = json_object(files[CONFIG], f"{where}/{CONFIG}")
    config = PeftConfig.read(told, f"{where}/{CONFIG}")
    if WEIGHTS not in files:
        raise InvalidArgument(
            f"{where} has no {WEIGHTS}; pickles (adapter_model.bin) are never opened: save it as safetensors"
        )
    weights = f"{where}/{WEIGHTS}"
    deltas: dict[str, Delta] = {}
    for module, parts in _modules(read_tensors(files[WEIGHTS], weights), weights).items():
        config.require_target(module, weights)
        deltas[_name(module, parts, weights)] = _delta(module, parts, config, weights)
    if not deltas:
        raise InvalidArgument(f"{weights} holds no factors of any module")
    options: dict[str, Any] = {name: told[name] for name in ("r", "lora_alpha", "use_rslora") if told.get(name)}
    return deltas, Manifest(base=Base(id=config.base), method="lora", options=options)


def written_peft(deltas: Mapping[str, Delta], embedding: str | None, base: str) -> dict[str, bytes]:
    """The two files. `deltas` by module path; `embedding`: the path among them whose delta is of a lookup, if one is.

    Raises InvalidArgument where PEFT has no such adapter: biases beside an embedding's pair, or at it.
    """
    biased = [path for path, delta in deltas.items() if delta.bias is not None]
    if biased and embedding is not None:
        raise InvalidArgument(
            f"PEFT has no adapter with biases ({biased[0]}) and a pair at the embedding ({embedding}): save two"
        )
    tensors: dict[str, Array] = {}
    for path, delta in deltas.items():
        key = f"{_PREFIX}{path}"
        if path == embedding:
            tensors |= {f"{key}.lora_embedding_A": delta.a.T, f"{key}.lora_embedding_B": delta.b.T}
            continue
        tensors |= {f"{key}.lora_A.weight": delta.a.T, f"{key}.lora_B.weight": delta.b.T}
        if biased:
            tensors[f"{key}.lora_B.bias"] = np.zeros(delta.d_out, np.float32) if delta.bias is None else delta.bias
    ranks = {path: delta.rank for path, delta in deltas.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "lora_bias": bool(biased),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": any(".c_attn" in path or ".c_fc" in path or ".c_proj" in path for path in ranks),
        "init_lora_weights": True,
    }
    return {CONFIG: json_text(config), WEIGHTS: written_tensors(tensors, {"format": "pt"})}


def _modules(tensors: Mapping[str, Array], where: str) -> dict[str, dict[str, Array]]:
    """Module → its factors, by part. Raises InvalidArgument for what belongs to no factor."""
    found: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        known = _KEY.fullmatch(key)
        if known is None:
            raise InvalidArgument(f"{where} holds {key[:120]!r}: {_reason(key)}")
        found.setdefault(known["module"], {})[known["part"]] = array
    for module, parts in found.items():
        if frozenset(parts) not in _FACTORS:
            raise InvalidArgument(f"{where} has only {', '.join(sorted(parts))} of {module}; fetch it again")
    return found


def _reason(key: str) -> str:
    if "base_layer" in key or key.endswith(("embed_tokens.weight", "lm_head.weight")):
        return "a whole matrix of the base; save it again with save_pretrained(…, save_embedding_layers=False)"
    if "magnitude" in key:
        return "DoRA's, which scales the base's rows"
    return "no factor of a LoRA that is known here"


def _name(module: str, parts: Mapping[str, Array], where: str) -> str:
    if not _FACTORS[frozenset(parts)]:
        return f"module:{module}"
    if module.rpartition(".")[2] not in EMBEDDINGS:
        raise InvalidArgument(f"{where} has a pair at the embedding {module}; only the token embedding takes one")
    return "w_embed"


def _delta(module: str, parts: Mapping[str, Array], config: PeftConfig, where: str) -> Delta:
    """A module's change, with the scale in B."""
    embedding = _FACTORS[frozenset(parts)]
    a, b = (
        parts[name]
        for name in (("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight"))
    )
    bias = parts.get("lora_B.bias")
    rank, scale = config.rank(module), config.scale(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise InvalidArgument(
            f"{where}: the factors of {module} have shapes {list(a.shape)} and {list(b.shape)}; its config says rank {rank}: "
            f"[{rank}, d_in] and [d_out, {rank}]"
        )
    if (bias is not None) != (config.lora_bias and not embedding):
        raise InvalidArgument(
            f"{where}: {module} has {'a' if bias is not None else 'no'} lora_B.bias, against lora_bias of its config"
        )
    try:
        delta = Delta(a.T, b.T, bias)
        return delta if scale == 1 else delta.scaled(scale)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {module}: {error}") from None
