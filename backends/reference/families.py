"""The families: a row each, which says how a checkpoint's config and weight names become switches of one transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .config import Config

__all__ = ["FAMILIES", "Family"]

_LLAMA = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "attn_norm": "model.layers.{}.input_layernorm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "q_norm": "model.layers.{}.self_attn.q_norm",
    "k_norm": "model.layers.{}.self_attn.k_norm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}
_GEMMA = {
    **_LLAMA,
    "attn_post_norm": "model.layers.{}.post_attention_layernorm",
    "mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}
_PHI3 = {**_LLAMA, "qkv": "model.layers.{}.self_attn.qkv_proj", "gate_up": "model.layers.{}.mlp.gate_up_proj"}
_GPT2 = {
    "embedding": "wte",
    "positions": "wpe",
    "final_norm": "ln_f",
    "attn_norm": "h.{}.ln_1",
    "mlp_norm": "h.{}.ln_2",
    "qkv": "h.{}.attn.c_attn",
    "o": "h.{}.attn.c_proj",
    "gate": "h.{}.mlp.c_fc",
    "down": "h.{}.mlp.c_proj",
}
_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
_GPT_OSS = {
    **_LLAMA,
    "sinks": "model.layers.{}.self_attn.sinks",
    "router": "model.layers.{}.mlp.router",
    "experts": "model.layers.{}.mlp.experts",
}

LayerRule = Callable[[Config, int], bool]
"""(config, layer) → whether it holds for the layer."""


def _never(config: Config, layer: int) -> bool:
    del config, layer
    return False


def _always(config: Config, layer: int) -> bool:
    del config, layer
    return True


def _all_but_every_second(config: Config, layer: int) -> bool:
    del config
    return (layer + 1) % 2 != 0


def _all_but_the_pattern(config: Config, layer: int) -> bool:
    return (layer + 1) % config["sliding_window_pattern"] != 0


def _upper(config: Config, layer: int) -> bool:
    return layer >= config["max_window_layers"]


def _listed_or_all_but_every_nth(config: Config, layer: int) -> bool:
    listed = config.get("no_rope_layers")  # which lists, its name notwithstanding, 1 for the layers that rotate
    return bool(listed[layer]) if listed is not None else (layer + 1) % config["no_rope_layer_interval"] != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets one architecture apart. Weights that a checkpoint lacks (a bias, a q norm) need no switch."""

    names: dict[str, str]
    """Our name of a weight → the checkpoint's, `{}` standing for the layer."""
    prefix: str = ""
    """What may stand before those names."""
    keys: dict[str, str] = field(default_factory=dict[str, str])
    """Our name of a config key → the family's."""
    transposed: bool = True
    """Linear weights are [out, in]; gpt2's are [in, out]."""
    tied: bool = False
    """The unembedding is the embedding, where the config does not say."""
    activation: str = "silu"
    """Where the config does not say."""
    gemma: bool = False
    """Norms hold w − 1, the embedding is scaled by √d_model, scores by query_pre_attn_scalar^−½; softcaps."""
    theta: float = 10000.0
    """The rotary base, where the config does not say."""
    local_theta: float | None = None
    """The rotary base of windowed layers, where it is another and the config does not say."""
    rotates: LayerRule = _always
    slides: LayerRule = _never
    """Attention is windowed, where the config has no `layer_types` (or the family does not heed them)."""
    heeds_layer_types: bool = True
    window_is_opt_in: bool = False
    """A `sliding_window` counts only with `use_sliding_window`."""


FAMILIES: dict[str, Family] = {
    "llama": Family(names=_LLAMA, rotates=_always, heeds_layer_types=False),
    "mistral": Family(names=_LLAMA, slides=_always, heeds_layer_types=False),
    "qwen2": Family(names=_LLAMA, slides=_upper, window_is_opt_in=True),
    "qwen3": Family(names=_LLAMA, slides=_upper, window_is_opt_in=True),
    "smollm3": Family(names=_LLAMA, tied=True, theta=2e6, rotates=_listed_or_all_but_every_nth, window_is_opt_in=True),
    "gpt2": Family(
        names=_GPT2,
        prefix="transformer.",
        keys=_GPT2_KEYS,
        transposed=False,
        tied=True,
        activation="gelu_new",
        rotates=_never,
        heeds_layer_types=False,
    ),
    "gemma2": Family(
        names=_GEMMA,
        keys={"hidden_act": "hidden_activation"},
        tied=True,
        activation="gelu_pytorch_tanh",
        gemma=True,
        slides=_all_but_every_second,
    ),
    "gemma3_text": Family(
        names=_GEMMA,
        keys={"hidden_act": "hidden_activation"},
        tied=True,
        activation="gelu_pytorch_tanh",
        gemma=True,
        theta=1e6,
        local_theta=1e4,
        slides=_all_but_the_pattern,
    ),
    "phi3": Family(names=_PHI3, slides=_always, heeds_layer_types=False),
    "gpt_oss": Family(names=_GPT_OSS, theta=150000.0, slides=_all_but_every_second),
}
"""By the `model_type` of the checkpoint's config."""
