"""The config of a folder's text model as transformers reads it, whatever the checkpoint holds beside it."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument
from .refusals import contradicts_itself, unknown_type
from .tower import Tower, is_wrapper

__all__ = ["PROVEN", "check_compared", "text_config"]

PROVEN = (
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "idefics3",
    "internvl",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "voxtral",
)
"""Wrappers whose logits of text alone are their text model's, in tests/backends/test_towers.py."""

_NO_WINDOW: dict[str, Any] = {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
_PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl_text": ("qwen2", {"head_dim": None}),
    "qwen2_5_vl_text": ("qwen2", {"head_dim": None}),
    "qwen3_vl_text": ("qwen3", _NO_WINDOW),
    "qwen3_vl_moe_text": ("qwen3_moe", {**_NO_WINDOW, "norm_topk_prob": True}),
    "glm4v_text": ("glm4", {"head_dim": None, "attention_bias": True}),
    "glm4v_moe_text": ("glm4_moe", {"use_qk_norm": False}),
}
"""Text models that differ from another type only in positions of pictures: with text alone all three axes are equal.

With each, what its class has built in and the other's reads from the config.
"""
_OF_PICTURES = ("mrope_section", "mrope_interleaved")
_STORED = ("quantization_config", "quantization")
_NO_CODE = ("does not recognize this architecture", "trust_remote_code")
"""What transformers says of an architecture that it does not have, or that comes as code beside the weights."""


def text_config(folder: Path) -> Any:
    """transformers' config of the text model; the whole one's where it is that itself.

    Raises InvalidArgument for a wrapper that has no causal text model, or whose text model was not compared with the whole.
    """
    from ..model.weights import CheckpointWeights  # which itself begins with this package

    written: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole = _whole(folder, written)
    tower = CheckpointWeights(folder).tower
    if tower is None:
        _check_whole(whole, written)
        return whole
    check_compared(tower)
    text = _by_itself(whole.get_text_config())
    text.tie_word_embeddings = bool(
        getattr(whole, "tie_word_embeddings", False)
    )  # without a word the whole ties nothing
    if getattr(whole, "dtype", None) is not None:
        text.dtype = whole.dtype
    for name in _STORED:
        stored = written.get(name) or getattr(text, name, None)
        if stored:
            setattr(text, name, _renamed(stored, tower))
    return text


def check_compared(tower: Tower) -> None:
    """Raise InvalidArgument for the text model of a wrapper that is not among those that were compared with the whole."""
    if tower.wrapper not in PROVEN:
        raise InvalidArgument(
            f"the text model of a {tower.wrapper} checkpoint by itself was not compared with the whole model; probewire serves "
            f"those of {', '.join(PROVEN)}"
        )


def _whole(folder: Path, written: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    kind = str(written.get("model_type") or "")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        raise contradicts_itself(folder, kind, error) from error
    except ValueError as error:
        if kind and any(said in str(error) for said in _NO_CODE):
            raise unknown_type(kind, version("transformers")) from error
        raise


def _check_whole(whole: Any, written: dict[str, Any]) -> None:
    if getattr(whole, "text_config", None) is not None and not is_wrapper(written):
        raise InvalidArgument(
            f"config.json of this {whole.model_type} checkpoint says nothing of its text model: text_config is missing; "
            "take the config.json that came with the weights"
        )


def _by_itself(text: Any) -> Any:
    """The config of a text model that has no class by itself, as that of the type that computes the same."""
    from transformers import AutoConfig

    if text.model_type not in _PLAIN:
        return text
    plain, built_in = _PLAIN[text.model_type]
    fields: dict[str, Any] = {**text.to_dict(), **built_in}
    fields.pop("model_type")
    rope: dict[str, Any] = dict(fields.get("rope_parameters") or {})
    for name in _OF_PICTURES:
        rope.pop(name, None)
    if rope.get("rope_type") == "mrope":
        rope["rope_type"] = "default"
    rope.pop("type", None)
    fields["rope_parameters"] = rope
    fields["head_dim"] = fields.get("head_dim") or text.hidden_size // text.num_attention_heads  # others default to 128
    return cast("Any", AutoConfig).for_model(plain, **fields)


def _renamed(value: Any, tower: Tower) -> Any:
    """Names of modules in how the weights are stored (which of them are not quantised, say) as the text model has them."""
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        return {tower.renamed(name): _renamed(inner, tower) for name, inner in found.items()}
    if isinstance(value, list):
        return [tower.renamed(name) if isinstance(name, str) else name for name in cast("list[Any]", value)]
    return value
