"""A checkpoint written by transformers, loaded by mlx-lm with our recipe, gives transformers' logits; or it is refused."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model
from transformers import AutoConfig, AutoModelForCausalLM

from probewire.backends.checkpoints import MLX_FAMILIES, MlxRecipe, mlx_config, mlx_recipe, mlx_weights
from probewire.backends.mlx.mends import mend
from probewire.protos.errors import InvalidArgument

MAX_LOGIT_DIFFERENCE = 1e-4
TOKENS = [5, 9, 33, 2, 71, 18, 44, 90, 3, 12, 60, 7]
LONG = TOKENS * 3
"""Beyond every sliding window below."""
DIMS: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
SHORT, LONGER = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
GEMMA = {**DIMS, "head_dim": 16, "query_pre_attn_scalar": 32, "sliding_window": 16}
GPT_OSS = {**DIMS, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}


def rope(kind: str, theta: float = 3e4, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


def yarn(**more: Any) -> dict[str, Any]:
    return rope("yarn", **{"factor": 8.0, "original_max_position_embeddings": 32, **more})


def longrope(**more: Any) -> dict[str, Any]:
    return rope("longrope", short_factor=SHORT, long_factor=LONGER, original_max_position_embeddings=40, **more)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
}

CASES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama": ("llama", {**DIMS, **rope("default", 5e5), "tie_word_embeddings": True}, None),
    "llama untied with biases": ("llama", {**DIMS, "attention_bias": True, "mlp_bias": True, "head_dim": 16}, None),
    "llama linear": ("llama", {**DIMS, **rope("linear", factor=4.0)}, None),
    "llama dynamic": ("llama", {**DIMS, **rope("dynamic", factor=4.0)}, 256),
    "llama llama3": ("llama", {**DIMS, **rope("llama3", **LLAMA3)}, None),
    "llama yarn": ("llama", {**DIMS, **yarn()}, None),
    "llama yarn not truncated": ("llama", {**DIMS, **yarn(truncate=False)}, None),
    "llama yarn attention_factor": ("llama", {**DIMS, **yarn(attention_factor=1.5)}, None),
    "llama yarn mscale": ("llama", {**DIMS, **yarn(mscale=1.0, mscale_all_dim=0.5)}, None),
    "llama longrope": ("llama", {**DIMS, **longrope()}, 40),
    "mistral": ("mistral", {**DIMS, **rope("default", 1e6), "sliding_window": None}, None),
    "mistral window": ("mistral", {**DIMS, "sliding_window": 16}, 16),
    "qwen2": ("qwen2", {**DIMS, **rope("default")}, None),
    "qwen2 window": ("qwen2", {**DIMS, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, 16),
    "qwen3": ("qwen3", {**DIMS, **rope("default"), "head_dim": 20}, None),
    "qwen3 window": ("qwen3", {**DIMS, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, 16),
    "smollm3": ("smollm3", {**DIMS, "no_rope_layers": [1, 0, 1, 1]}, None),
    "smollm3 window": ("smollm3", {**DIMS, "use_sliding_window": True, "sliding_window": 16}, 16),
    "gpt2": ("gpt2", {"vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 4, "n_head": 4}, 64),
    "gemma2": ("gemma2", {**GEMMA, **rope("default"), "attn_logit_softcapping": 3.0}, 16),
    "gemma2 without windows": ("gemma2", {**GEMMA, "layer_types": ["full_attention"] * 4}, None),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ALTERNATING}, None),
    "gemma3 as released": ("gemma3_text", {**GEMMA, "num_hidden_layers": 8, "rope_parameters": GEMMA_ROPES}, None),
    "phi3": ("phi3", {**DIMS, **rope("default", partial_rotary_factor=0.5)}, None),
    "phi3 window": ("phi3", {**DIMS, "sliding_window": 16}, 16),
    "phi3 longrope": ("phi3", {**DIMS, **longrope(), "original_max_position_embeddings": 40}, 40),
    "phi3 attention_factor": (
        "phi3",
        {**DIMS, **longrope(attention_factor=1.3), "original_max_position_embeddings": 40},
        40,
    ),
    "gpt_oss": ("gpt_oss", GPT_OSS, None),
    "gpt_oss at its real width": ("gpt_oss", {**GPT_OSS, "head_dim": 64, "max_position_embeddings": 131072}, None),
}
"""Name -> model type, config, and the length up to which the two backends agree."""


def config_of(case: str) -> dict[str, Any]:
    """The config as transformers writes it."""
    model_type, fields, _ = CASES[case]
    return json.loads(AutoConfig.for_model(model_type, **fields).to_json_string())


def torch_model(case: str) -> Any:
    model_type, fields, _ = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        # Norms of ones and biases of zeros would hide a mistake.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def mlx_model(folder: Path, recipe: MlxRecipe) -> Any:
    """What backends/mlx must do with a recipe."""

    def classes(config: dict[str, Any]) -> Any:
        Model, Args = _get_classes(config)

        class Prepared(Model):
            def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
                weights = mlx_weights(recipe.config, weights)
                return super().sanitize(weights) if hasattr(Model, "sanitize") else weights

        return Prepared, Args

    model: Any = load_model(folder, model_config=recipe.config, get_model_classes=classes)[0]
    mend(model, recipe, SimpleNamespace(**recipe.config), mx.float32)
    return model


@pytest.mark.parametrize("case", CASES)
def test_mlx_gives_the_logits_of_torch(case, tmp_path):
    reference = torch_model(case)
    reference.save_pretrained(tmp_path)
    recipe = mlx_recipe(json.loads((tmp_path / "config.json").read_text()))
    max_positions = CASES[case][2]
    assert recipe.max_positions == max_positions
    assert bool(recipe.reason) == (max_positions is not None)
    model = mlx_model(tmp_path, recipe)

    tokens = LONG[:max_positions]
    with torch.no_grad():
        expected = reference(torch.tensor([tokens])).logits[0].numpy()
    at_once = np.array(model(mx.array([tokens]))[0])
    cache = make_prompt_cache(model)
    one_by_one = np.concatenate([np.array(model(mx.array([[token]]), cache=cache)[0]) for token in tokens])
    assert np.abs(at_once - expected).max() < MAX_LOGIT_DIFFERENCE
    assert np.abs(one_by_one - expected).max() < MAX_LOGIT_DIFFERENCE


@pytest.mark.parametrize("case", ["mistral window", "gemma2", "phi3 window"])
def test_the_stated_length_is_needed(case, tmp_path):
    """If mlx-lm learns the window, this fails and the limit can go."""
    reference = torch_model(case)
    reference.save_pretrained(tmp_path)
    model = mlx_model(tmp_path, mlx_recipe(config_of(case)))
    with torch.no_grad():
        expected = reference(torch.tensor([LONG])).logits[0].numpy()
    difference = np.abs(np.array(model(mx.array([LONG]))[0]) - expected).max(axis=-1)
    assert difference[:16].max() < MAX_LOGIT_DIFFERENCE
    assert difference[16:].max() > 0.1


def test_every_family_has_a_case():
    assert {model_type for model_type, _, _ in CASES.values()} == set(MLX_FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_pure_and_plain(case):
    config = config_of(case)
    before = copy.deepcopy(config)
    recipe = mlx_recipe(config)
    assert config == before
    assert json.loads(json.dumps(recipe.config)) == recipe.config


def test_the_old_spelling_means_the_same():
    """As configs on the hub were written before transformers 5."""
    old = config_of("llama llama3")
    parameters = old.pop("rope_parameters")
    old["rope_theta"] = parameters.pop("rope_theta")
    old["rope_scaling"] = parameters
    new = mlx_config(config_of("llama llama3"))
    assert {name: mlx_config(old)[name] for name in ("rope_theta", "rope_scaling")} == {
        "rope_theta": new["rope_theta"],
        "rope_scaling": new["rope_scaling"],
    }


def test_gemma3_as_the_hub_has_it():
    old = config_of("gemma3 as released")
    del old["rope_parameters"], old["layer_types"]
    old |= {"rope_theta": 1e6, "rope_local_base_freq": 200.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = mlx_config(old | {"sliding_window_pattern": 4})
    assert (config["rope_theta"], config["rope_local_base_freq"], config["sliding_window_pattern"]) == (1e6, 200.0, 4)
    assert config["rope_scaling"]["factor"] == 8.0


def test_transformers_defaults_are_written_out():
    """mlx-lm's own defaults differ: tied embeddings, and a rope_theta of 1,000,000."""
    config = mlx_config({"model_type": "qwen2", "hidden_size": 48, "num_attention_heads": 4})
    assert (config["tie_word_embeddings"], config["rope_theta"]) == (False, 10000.0)


def test_fields_that_only_mlx_would_act_on_are_neutralised():
    odd = {"layer_types": ALTERNATING, "sliding_window": 4, "rope_traditional": True}
    config = mlx_config(config_of("llama") | odd)
    assert (config["layer_types"], config["sliding_window"], config["rope_traditional"]) == (None, None, False)
    assert mlx_recipe(config_of("llama") | odd).max_positions is None


def test_mlx_config_refuses_what_only_a_recipe_can_repair():
    with pytest.raises(InvalidArgument, match="truncate=false"):
        mlx_config(config_of("gpt_oss"))


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "'proportional'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "transformers cannot read the config"),
        ("llama", {"hidden_size": "wide"}, "transformers cannot read the config"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}},
            "0.5",
        ),
        ("llama", yarn(factor=1.0, attention_factor=1.5), "attention_factor 1.5"),
        ("llama longrope", longrope(attention_factor=0.5), "attention_factor 0.5"),
        ("qwen2", {"head_dim": 20}, "head_dim=20"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
        ("gpt2", {"n_inner": 100}, "n_inner=100"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping=None"),
        ("gemma2", rope("linear", factor=2.0), "rope_type 'linear'"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ("gemma3", {"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ("gemma3", {"layer_types": [*ALTERNATING[:3], "sliding_attention"]}, "layer_types"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit=5.0"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 4}, "layer_types"),
        ("llama", {"model_type": None}, "this None model"),
        ("llama", {"model_type": "nobodys"}, "this nobodys model"),
    ],
)
def test_what_mlx_cannot_do_is_refused(case, change, named):
    with pytest.raises(InvalidArgument) as caught:
        mlx_recipe(config_of(case) | change)
    assert named in caught.value.message
    assert "torch backend" in caught.value.message or "transformers cannot read" in caught.value.message


def test_an_architecture_that_was_not_compared_says_so_and_gets_every_field():
    recipe = mlx_recipe(config_of("llama") | {"model_type": "olmo2"} | rope("llama3", **LLAMA3))
    assert not recipe.compared
    assert recipe.config["rope_theta"] == recipe.config["rotary_emb_base"]
    assert recipe.config["partial_rotary_factor"] == recipe.config["rotary_pct"] == 1.0
    assert recipe.config["rope_scaling"]["type"] == "llama3"


def test_weights_of_a_hub_gpt2_and_of_a_packed_gpt_oss_stay_as_they_are():
    hub = {"wte.weight": 1, "h.0.attn.bias": 2, "h.0.attn.masked_bias": 3, "lm_head.weight": 1}
    assert mlx_weights({"model_type": "gpt2", "tie_word_embeddings": True}, hub) == {
        "wte.weight": 1,
        "h.0.attn.bias": 2,
    }
    packed = {"model.layers.0.mlp.experts.gate_up_proj_blocks": 1, "model.layers.0.mlp.experts.down_proj_scales": 2}
    assert mlx_weights({"model_type": "gpt_oss"}, packed) == packed
