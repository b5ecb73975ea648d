"""Sets right where mlx-lm's code computes something else than transformers', and no config can say so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

from ...protos.errors import InvalidArgument
from ..checkpoints.mlx_recipe import MlxRecipe
from ..hooks.rules import activation_name

__all__ = ["ACTIVATIONS", "body_of", "mend"]

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "relu2": nn.relu2,
}


def mend(model: Any, recipe: MlxRecipe, config: Any, dtype: mx.Dtype) -> None:
    """Set right what no config of mlx-lm's can say."""
    if recipe.rope_freqs is not None:
        for layer in model.layers:
            layer.self_attn.rope._freqs = mx.array(recipe.rope_freqs, dtype=mx.float32)
    for module in model.modules():
        if isinstance(module, nn.QuantizedEmbedding) and module.mode != "affine":
            # mlx unpacks it to bfloat16, whatever the model computes in.
            _replace_call(module, lambda call, ids: call(ids).astype(dtype))
    if recipe.embed_scale is not None:
        scale = mx.array(recipe.embed_scale, mx.float32).astype(dtype)
        _replace_call(model.model.embed_tokens, lambda call, ids: call(ids) * scale)
        # The body would scale again, by the square root of what it takes for the model's width.
        model.model.args = copy.copy(model.model.args)
        model.model.args.hidden_size = 1
    if config.model_type == "gpt2":
        # Padding rows of a chunk may have positions past the table, and MLX checks no bounds.
        last = config.n_positions - 1
        _replace_call(model.model.wpe, lambda call, ids: call(mx.minimum(ids, last)))
    if config.model_type in _OTHER_ACTIVATIONS:
        _use_activation(model.layers, config)
    if config.model_type == "glm":  # which turns whole heads
        rope = config.rope_parameters
        dims = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        for layer in model.layers:
            layer.self_attn.rope = nn.RoPE(dims, traditional=True, base=rope["rope_theta"])
    if (
        config.model_type == "glm4_moe_lite"
    ):  # whose latents' norms have transformers' default, whatever the config says
        for layer in model.layers:
            for norm in ("q_a_layernorm", "kv_a_layernorm"):
                if norm in layer.self_attn:
                    layer.self_attn[norm].eps = 1e-6
    _head_outside(model, config)


def body_of(model: Any) -> Any:
    """The module that holds the layers: token ids to final-norm rows. Raises InvalidArgument where no one module does."""
    first = id(model.layers[0])
    path = next((path for path, module in model.named_modules() if id(module) == first), "")
    name = path.split(".")[0]
    if name not in model or not isinstance(model[name], nn.Module):
        raise InvalidArgument(
            f"mlx-lm's {type(model).__module__} keeps its layers where no one module is the model's body"
        )
    return model[name]


def _head_outside(model: Any, config: Any) -> None:
    """Where the body of a model ends with its output head (gpt_neox), let the model do that: rows are what others ask for."""
    body = body_of(model)
    name = next((n for n, m in body.children().items() if _is_head(m, config)), None)
    if name is None:
        return
    model["lm_head"], body[name] = body[name], nn.Identity()
    own = type(model)

    def call(this: Any, *args: Any, **kwargs: Any) -> mx.array:
        return this.lm_head(own.__call__(this, *args, **kwargs))

    model.__class__ = type(own.__name__, (own,), {"__call__": call})


def _is_head(module: Any, config: Any) -> bool:
    return isinstance(module, (nn.Linear, nn.QuantizedLinear)) and module.weight.shape[0] == config.vocab_size


def _replace_call(module: Any, new: Any) -> None:
    own = type(module)
    module.__class__ = type(own.__name__, (own,), {"__call__": lambda self, x: new(lambda y: own.__call__(self, y), x)})


# ---- of one architecture ----


def _gemma(module: Any, x: mx.array, act: Callable[[mx.array], mx.array]) -> mx.array:
    return module.down_proj(act(module.gate_proj(x)) * module.up_proj(x))


def _starcoder2(module: Any, x: mx.array, act: Callable[[mx.array], mx.array]) -> mx.array:
    return module.c_proj(act(module.c_fc(x)))


def _gpt_neox(module: Any, x: mx.array, act: Callable[[mx.array], mx.array]) -> mx.array:
    return module.dense_4h_to_h(act(module.dense_h_to_4h(x)))


_OTHER_ACTIVATIONS = {"gemma": _gemma, "starcoder2": _starcoder2, "gpt_bigcode": _starcoder2, "gpt_neox": _gpt_neox}
"""Model type → the call of its MLP, in which mlx-lm has another kind of gelu built in than most checkpoints ask for."""


def _use_activation(layers: list[Any], config: Any) -> None:
    mlp, act = _OTHER_ACTIVATIONS[config.model_type], ACTIVATIONS.get(activation_name(config))
    if act is None:
        raise InvalidArgument(
            f"hidden_act={config.hidden_act!r} cannot be run on mlx for {config.model_type}; use torch"
        )
    for layer in layers:
        own = type(layer.mlp)
        layer.mlp.__class__ = type(own.__name__, (own,), {"__call__": lambda self, x: mlp(self, x, act)})
