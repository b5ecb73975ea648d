"""How to load a checkpoint with mlx-lm so that it computes what transformers computes: never a default guessed silently."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

from ...protos.errors import FailedPrecondition, InvalidArgument
from .mlx_fields import mlx_fields
from .mlx_rope import MlxRope, mlx_rope
from .shrunk import plain_json

__all__ = ["MLX_FAMILIES", "MlxRecipe", "mlx_config", "mlx_recipe"]

_NOT_TRUE = (None, False)

_GATED = {"hidden_act": ("silu", "swish")}
_MUST_BE: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED | {"attention_bias": _NOT_TRUE},
    "smollm3": _GATED,
    "phi3": _GATED,
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": _NOT_TRUE,
        "add_cross_attention": _NOT_TRUE,
        "tie_word_embeddings": (True,),
    },
    "gemma2": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": _NOT_TRUE,
        "use_bidirectional_attention": _NOT_TRUE,
        "tie_word_embeddings": (True,),
    },
    "gemma3_text": {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": _NOT_TRUE,
        "use_bidirectional_attention": _NOT_TRUE,
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
    },
    "gpt_oss": {
        "attention_bias": (True,),
        "swiglu_alpha": (1.702,),
        "swiglu_limit": (7.0,),
        "tie_word_embeddings": _NOT_TRUE,
    },
}
"""Model type -> field -> the values that mlx-lm's code for it has built in."""

_MUST_BE_SET = {"gemma2": ("attn_logit_softcapping", "final_logit_softcapping")}
"""Fields that transformers may do without and mlx-lm computes with."""

MLX_FAMILIES = tuple(_MUST_BE)
"""The architectures whose mlx-lm code was compared with transformers'."""

_ROPE_KINDS = {
    "gemma2": ("default",),
    "phi3": ("default", "longrope"),
    "gpt_oss": ("default", "linear", "llama3", "yarn"),
}
"""Where a family's mlx-lm code knows fewer kinds of rotary embedding than the rest."""

_IGNORED_BY_TRANSFORMERS = {
    "llama": {"layer_types": None, "sliding_window": None},
    "mistral": {"layer_types": None, "sliding_window": None, "attention_bias": False, "mlp_bias": False},
    "smollm3": {"layer_types": None, "sliding_window": None},
}
"""Fields that mlx-lm would act on and transformers does not, or (windows) not in the same way."""


@dataclass(frozen=True, slots=True)
class MlxRecipe:
    """Everything that makes mlx-lm agree with transformers on one checkpoint."""

    config: dict[str, Any]
    """For `mlx_lm.utils.load_model(model_config=…)`."""
    max_positions: int | None = None
    """The longest sequence on which the two agree; None when length does not matter."""
    reason: str = ""
    """Why there is such a length."""
    rope_freqs: tuple[float, ...] | None = None
    """To be put into `self_attn.rope._freqs` of every layer, in float32; None when the config suffices."""
    embed_scale: float | None = None
    """The factor on embeddings, which transformers has in the embedding's module and mlx-lm behind it (gemma3: rounded to
    bfloat16 whatever the weights' dtype)."""
    compared: bool = True
    """Whether this architecture's code was read beside transformers'. If not, the two are to be compared at load."""


def mlx_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config with every field explicit that mlx-lm needs or would fill with a default of its own.

    Raises InvalidArgument if no config makes mlx-lm compute what transformers does. See `mlx_recipe` for what a
    config alone cannot repair.
    """
    recipe = mlx_recipe(config)
    if recipe.rope_freqs is not None:
        raise InvalidArgument(
            "yarn with truncate=false cannot be put into words that mlx-lm reads; load with mlx_recipe, whose "
            "rope_freqs go into the model, or use the torch backend"
        )
    return recipe.config


def mlx_recipe(config: dict[str, Any]) -> MlxRecipe:
    """Work out how to load this config with mlx-lm. Pure; `config` is not changed.

    Raises InvalidArgument for settings that mlx-lm does not know.
    """
    model_type = config.get("model_type")
    full = _filled_in(config)
    if model_type not in _MUST_BE:
        fields, turned = mlx_fields(config, full)
        max_positions, reason = _shortest(turned) if turned else (None, "")
        return MlxRecipe(fields, max_positions, reason, compared=False)
    _check_built_in(full, model_type)
    if model_type == "gpt2":
        return _gpt2(config, full)
    if model_type == "gemma3_text":
        return _gemma3(config, full)
    rope = _rope(full, full["rope_parameters"])
    explicit = _explicit(config, full, rope)
    if model_type == "phi3":
        explicit["partial_rotary_factor"] = full["rope_parameters"].get("partial_rotary_factor", 1.0)
    if model_type == "gpt_oss":
        _check_layer_types(full)
    max_positions, reason = _shortest(rope, None if model_type == "gpt_oss" else _window(full))
    scale = math.sqrt(full["hidden_size"]) if model_type == "gemma2" else None
    return MlxRecipe(explicit, max_positions, reason, rope.freqs, scale)


def _shortest(rope: MlxRope, window: int | None = None) -> tuple[int | None, str]:
    """The first length at which the two part ways, and why. Within a sliding window, sliding or not is the same."""
    if window is not None and (rope.max_positions is None or window < rope.max_positions):
        return window, f"the model attends within a sliding window of {window} and its mlx-lm code to everything"
    reason = "beyond it transformers changes the rotary frequencies" if rope.max_positions else ""
    return rope.max_positions, reason


def _filled_in(config: dict[str, Any]) -> dict[str, Any]:
    """The config as transformers reads it: its own defaults written out, old spellings brought up to date."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            "the mlx backend needs the package transformers: pip install 'probewire[mlx]'"
        ) from error
    fields = copy.deepcopy(config)
    try:
        kind = type(cast("Any", AutoConfig).for_model(fields.pop("model_type", None)))
        return plain_json(kind.from_dict(fields).to_json_string(use_diff=False))
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise InvalidArgument(
            f"transformers cannot read the config of this {config.get('model_type')} model: {' '.join(str(error).split())}"
        ) from error


def _check_built_in(full: dict[str, Any], model_type: str) -> None:
    for name, allowed in _MUST_BE[model_type].items():
        if full.get(name) not in allowed:
            raise InvalidArgument(
                f"{name}={full.get(name)!r} cannot be run on mlx: mlx-lm's {model_type} has "
                f"{' or '.join(map(repr, allowed))} built in; load this model with the torch backend"
            )
    for name in _MUST_BE_SET.get(model_type, ()):
        if full.get(name) is None:
            raise InvalidArgument(
                f"{name}=None cannot be run on mlx: mlx-lm's {model_type} needs a number; "
                "load this model with the torch backend"
            )
    if model_type in ("qwen2", "phi3"):
        d_head = full["hidden_size"] // full["num_attention_heads"]
        if full.get("head_dim", d_head) not in (None, d_head):
            raise InvalidArgument(
                f"head_dim={full['head_dim']} cannot be run on mlx: mlx-lm's {model_type} takes hidden_size / "
                f"num_attention_heads = {d_head}; load this model with the torch backend"
            )


def _explicit(config: dict[str, Any], full: dict[str, Any], rope: MlxRope) -> dict[str, Any]:
    return {
        **config,
        **full,
        "head_dim": _d_head(full),
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "rope_traditional": False,
        **rope.overrides,
        **_IGNORED_BY_TRANSFORMERS.get(full["model_type"], {}),
    }


def _d_head(full: dict[str, Any]) -> int:
    return full.get("head_dim") or full["hidden_size"] // full["num_attention_heads"]


def _rope(full: dict[str, Any], parameters: dict[str, Any]) -> MlxRope:
    model_type = full["model_type"]
    if "rope_type" not in parameters:
        raise InvalidArgument(
            f"rope_parameters with a part for each of {', '.join(parameters)} cannot be run on mlx for {model_type}; "
            "load this model with the torch backend"
        )
    partial = parameters.get("partial_rotary_factor") or 1.0
    if partial != 1.0 and model_type != "phi3":
        raise InvalidArgument(
            f"partial_rotary_factor={partial} cannot be run on mlx for {model_type}; use the torch backend"
        )
    kinds = _ROPE_KINDS.get(model_type)
    if kinds is not None and parameters["rope_type"] not in kinds:
        raise InvalidArgument(
            f"rope_type {parameters['rope_type']!r} cannot be run on mlx for {model_type} (allowed: {', '.join(kinds)}); "
            "load this model with the torch backend"
        )
    return mlx_rope(parameters, full["max_position_embeddings"], int(_d_head(full) * partial))


def _window(full: dict[str, Any]) -> int | None:
    """The sliding window that transformers applies, if it applies one."""
    window = full.get("sliding_window")
    layer_types = full.get("layer_types")
    # llama has no window; mistral and phi3 slide in every layer, the others where their layer types say so.
    if full["model_type"] == "llama" or not window:
        return None
    if full["model_type"] in ("mistral", "phi3") or "sliding_attention" in (layer_types or ()):
        return int(window)
    return None


def _gpt2(config: dict[str, Any], full: dict[str, Any]) -> MlxRecipe:
    if full.get("n_inner") not in (None, 4 * full["n_embd"]):
        raise InvalidArgument(
            f"n_inner={full['n_inner']} cannot be run on mlx: mlx-lm's gpt2 takes 4 * n_embd = {4 * full['n_embd']}; "
            "load this model with the torch backend"
        )
    explicit = {**config, **full, "n_ctx": full["n_positions"], "num_key_value_heads": full["n_head"]}
    return MlxRecipe(explicit, full["n_positions"], "the model has no further position embeddings")


def _gemma3(config: dict[str, Any], full: dict[str, Any]) -> MlxRecipe:
    whole, local = (full["rope_parameters"][f"{name}_attention"] for name in ("full", "sliding"))
    if local["rope_type"] != "default":
        raise InvalidArgument(
            f"rope_type {local['rope_type']!r} in sliding layers cannot be run on mlx, which has the default built in; "
            "load this model with the torch backend"
        )
    rope = _rope(full, whole)
    if rope.freqs is not None:
        raise InvalidArgument("yarn with truncate=false cannot be run on mlx for gemma3_text; use the torch backend")
    explicit = _explicit(config, full, rope) | {
        "rope_local_base_freq": float(local["rope_theta"]),
        "sliding_window_pattern": _pattern(full["layer_types"]),
    }
    return MlxRecipe(explicit, *_shortest(rope), embed_scale=math.sqrt(full["hidden_size"]))


def _pattern(layer_types: list[str]) -> int:
    """Every how many layers one attends to everything; that is all mlx-lm's gemma3 can be told."""
    for period in range(1, len(layer_types) + 1):
        if all((kind == "full_attention") == ((i + 1) % period == 0) for i, kind in enumerate(layer_types)):
            return period
    raise InvalidArgument(
        f"layer_types {layer_types} cannot be run on mlx, which knows gemma3 only with a full_attention layer after "
        "every so many sliding ones; load this model with the torch backend"
    )


def _check_layer_types(full: dict[str, Any]) -> None:
    layer_types: list[str] = full["layer_types"]
    if set(layer_types) != {"full_attention", "sliding_attention"} or len(layer_types) != full["num_hidden_layers"]:
        raise InvalidArgument(
            f"layer_types {layer_types} cannot be run on mlx, whose gpt_oss needs one of full_attention and "
            f"sliding_attention for each of {full['num_hidden_layers']} layers, and both kinds; use the torch backend"
        )
