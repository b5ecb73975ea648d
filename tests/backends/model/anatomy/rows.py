"""Where ten architectures keep each site, written by hand: what derivation must find again, to the letter."""

from __future__ import annotations

from probewire.backends.model.sites import Family, Tap

__all__ = ["ROWS"]

_GATED_MLP = {
    "mlp_gate": Tap("mlp.gate_proj", "output", linear=True),
    "mlp_up": Tap("mlp.up_proj", "output", linear=True),
    "mlp_act": Tap("mlp.down_proj", "input"),
}
_LLAMA = {
    "resid_pre": Tap("", "input"),
    "attn_resid": Tap("input_layernorm", "input"),
    "attn_in": Tap("input_layernorm", "output"),
    "z": Tap("self_attn.o_proj", "input"),
    "attn_out": Tap("self_attn.o_proj", "output", linear=True),
    "resid_mid": Tap("post_attention_layernorm", "input", in_place=True),
    "mlp_resid": Tap("post_attention_layernorm", "input"),
    "mlp_in": Tap("post_attention_layernorm", "output"),
    **_GATED_MLP,
    "mlp_out": Tap("mlp.down_proj", "output", linear=True),
    "resid_post": Tap("", "output"),
}
_GEMMA = {
    **_LLAMA,
    "attn_out": Tap("post_attention_layernorm", "output"),
    "resid_mid": Tap("pre_feedforward_layernorm", "input", in_place=True),
    "mlp_resid": Tap("pre_feedforward_layernorm", "input"),
    "mlp_in": Tap("pre_feedforward_layernorm", "output"),
    "mlp_out": Tap("post_feedforward_layernorm", "output"),
}
_PHI3 = {
    **_LLAMA,
    "mlp_gate": Tap("mlp.gate_up_proj", "output", part=(0, 2)),
    "mlp_up": Tap("mlp.gate_up_proj", "output", part=(1, 2)),
}
_GPT2 = {
    "resid_pre": Tap("", "input"),
    "attn_resid": Tap("ln_1", "input"),
    "attn_in": Tap("ln_1", "output"),
    "z": Tap("attn.c_proj", "input"),
    "attn_out": Tap("attn.c_proj", "output", linear=True),
    "resid_mid": Tap("ln_2", "input", in_place=True),
    "mlp_resid": Tap("ln_2", "input"),
    "mlp_in": Tap("ln_2", "output"),
    "mlp_gate": Tap("mlp.c_fc", "output", linear=True),
    "mlp_act": Tap("mlp.c_proj", "input"),
    "mlp_out": Tap("mlp.c_proj", "output", linear=True),
    "resid_post": Tap("", "output"),
}
_GPT_OSS = {name: tap for name, tap in _LLAMA.items() if name not in ("mlp_gate", "mlp_up", "mlp_act", "mlp_out")} | {
    "mlp_out": Tap("mlp", "output"),
}
_ROUTERS = {
    "torch": {
        "router_logits": Tap("mlp.router", "product", router=True, flat=True),
        "expert_weights": Tap("mlp.experts", "weights", flat=True),
    },
    "mlx": {
        "router_logits": Tap("mlp.router", "output", router=True),
        "expert_weights": Tap("mlp.experts", "weights", flat=True),
    },
}

_TABLES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), _LLAMA),
    "gpt2": _GPT2,
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "phi3": _PHI3,
    "gpt_oss": _GPT_OSS,
}
_MODULES = {"gpt2": {"layers": "h", "norm": "ln_f", "attention": "attn"}}
_BODIES = {"gpt2": "transformer"}
ROWS = {
    (kind, library): Family(
        kind,
        {**table, **(_ROUTERS[library] if kind == "gpt_oss" else {})},
        body={"torch": _BODIES.get(kind, "model")} | ({"mlx": "model"} if library == "mlx" else {}),
        **_MODULES.get(kind, {}),
    )
    for kind, table in _TABLES.items()
    for library in ("torch", "mlx")
}
"""(model type, backend) → its table."""
