"""Models whose layers differ: each site of each layer holds what transformers' own module has there, at its own width."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from probewire.protos.edits import Add, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.tensors import Tensor
from tests.backends.derived import logits_of, write
from tests.backends.uneven import UNEVEN
from tests.parity.harness import assert_same, every_site, generate, load, run, sequence

TOKENS, OTHER = list(range(10, 26)), list(range(30, 60))
Where = tuple[str, str]
"""Module below the layer (its names in layers of either kind), and "input", "output" or "given": to experts."""
_ROUTER = {"router_logits": ("mlp.gate", "output"), "expert_weights": ("mlp.experts", "given")}
_MLP = {"attn_out": ("self_attn", "output"), "mlp_out": ("mlp", "output")}
_LATENT = {**_MLP, "z": ("self_attn.o_proj", "input"), "mlp_act": ("mlp.down_proj", "input"), **_ROUTER}
_MOE = {**_MLP, "z": ("self_attn.o_proj", "input"), **_ROUTER}
_GRANITE_MOE = {
    "attn_out": ("self_attn", "output"),
    "mlp_in": ("post_attention_layernorm", "output"),
    "router_logits": ("block_sparse_moe.router", "output"),
    "expert_weights": ("block_sparse_moe.experts", "given"),
}
ORACLES: dict[str, dict[str, Where]] = {
    "gemma4_text": {
        "attn_out": ("post_attention_layernorm", "output"),
        "mlp_out": ("post_feedforward_layernorm", "output"),
        "mlp_act": ("mlp.down_proj", "input"),
        "v": ("self_attn.v_norm", "output"),
        "z": ("self_attn.o_proj", "input"),
    },
    "deepseek_v3": _LATENT,
    "glm4_moe_lite": _LATENT,
    "minicpm3": {**_MLP, "z": ("self_attn.o_proj", "input"), "mlp_act": ("mlp.down_proj", "input")},
    "qwen3_next": {"attn_out": ("self_attn|linear_attn", "output"), "mlp_out": ("mlp", "output"), **_ROUTER},
    "qwen3_5_text": {
        "attn_out": ("self_attn|linear_attn", "output"),
        "mlp_out": ("mlp", "output"),
        "mlp_act": ("mlp.down_proj", "input"),
    },
    "lfm2": {
        "attn_out": ("self_attn|conv", "output"),
        "mlp_out": ("feed_forward", "output"),
        "z": ("self_attn.out_proj", "input"),
    },
    "jamba": {
        "attn_out": ("self_attn|mamba", "output"),
        "mlp_out": ("feed_forward", "output"),
        "mlp_act": ("feed_forward.down_proj", "input"),
        "router_logits": ("feed_forward.router", "output"),
        "expert_weights": ("feed_forward.experts", "given"),
    },
    "granite": {**_MLP, "z": ("self_attn.o_proj", "input")},
    "granitemoe": {**_GRANITE_MOE, "mlp_out": ("block_sparse_moe", "output")},
    "granitemoeshared": _GRANITE_MOE,
    "mixtral": _MOE,
    "qwen2_moe": _MOE,
    "qwen3_moe": _MOE,
    "olmoe": _MOE,
    "phimoe": {**_MOE, "router_logits": ("mlp.router", "output")},
    "llama4_text": {"attn_out": ("self_attn", "output"), "mlp_out": ("feed_forward", "output")},
    "opt": {
        "attn_out": ("self_attn", "output"),
        "mlp_out": ("fc2", "output"),
        "mlp_act": ("fc2", "input"),
        "mlp_in": ("final_layer_norm", "output"),
    },
    "mimo_v2_flash": {**_MOE, "mlp_act": ("mlp.down_proj", "input")},
    "nemotron_h": {"resid_post": ("", "output"), "router_logits": ("mixer.gate", "output")},
}
SCALED = {"granite": 0.5, "granitemoe": 0.5, "granitemoeshared": 0.5, "minicpm3": 1.4 / 4**0.5}
"""By which the stream takes what modules give (minicpm3: scale_depth over the root of its layers)."""


@pytest.mark.parametrize("kind", ORACLES)
def test_each_layers_sites_are_its_own_modules(kind: str, tmp_path: Path) -> None:
    """Read with one hook a kind of site, alone and beside a longer sequence; the widths are those that Describe tells."""
    backend = load("torch", write(kind, tmp_path, **UNEVEN[kind]))
    info = backend.info
    names = [site.name for site in info.sites if site.layers]
    assert set(ORACLES[kind]) <= set(names), info.refused
    plan = Plan(tuple(Hook(name, capture=Capture()) for name in (*(f"{name}.*" for name in names), "logits")))
    found = run(backend, TOKENS, plan)
    expected = _modules(tmp_path, TOKENS, ORACLES[kind])
    for index, name in enumerate(names):
        site = info.site(name)
        assert site is not None
        for layer in site.layers or ():
            values = found[index, f"{name}.{layer}", ""].values
            widths = values.shape[1:] if name not in ("attn_scores", "attn_probs") else (values.shape[0], 0)
            assert widths == site.at(layer), f"{name}.{layer}"
            if name in ORACLES[kind]:
                own = expected[name, layer] * (SCALED.get(kind, 1.0) if name in ("attn_out", "mlp_out") else 1.0)
                assert _error(values.reshape(len(TOKENS), -1), own) <= 1e-4, f"{name}.{layer}"
    assert {key for key in expected if key[0] in ORACLES[kind]} == {
        (name, layer) for name in ORACLES[kind] for layer in (info.site(name) or info.sites[0]).layers or ()
    }
    assert _error(found[len(names), "logits", ""].values, logits_of(tmp_path, TOKENS)) <= 1e-4
    beside = backend.run([sequence(backend, OTHER, plan, name="long"), sequence(backend, TOKENS, plan)])[1]
    for row in beside.rows:
        for site_name, values in zip(row.sites, row.values, strict=True):
            alone = found[row.hook, site_name, ""].values
            # Masked scores are −inf in both.
            assert _error(np.nan_to_num(values, neginf=0.0), np.nan_to_num(alone, neginf=0.0)) <= 1e-4, site_name
    backend.close()


def test_z_of_gated_attention_is_before_its_gate(tmp_path: Path) -> None:
    """qwen3_next multiplies what attention gives by sigmoid(gate) before its output projection reads it."""
    backend = load("torch", write("qwen3_next", tmp_path, **UNEVEN["qwen3_next"]))
    z = run(backend, TOKENS, Plan((Hook("z.1", capture=Capture()),)))[0, "z.1", ""].values
    backend.close()
    own = _modules(tmp_path, TOKENS, {"q": ("self_attn.q_proj", "output"), "read": ("self_attn.o_proj", "input")})
    gate = own["q", 1].reshape(len(TOKENS), 4, 2, 16)[:, :, 1]
    assert _error((z / (1 + np.exp(-gate))).reshape(len(TOKENS), -1), own["read", 1]) <= 1e-4


def test_a_layer_without_the_site_is_refused_by_name(tmp_path: Path) -> None:
    backend = load("torch", write("lfm2", tmp_path, **UNEVEN["lfm2"]))
    with pytest.raises(InvalidArgument, match=r"q does not exist at layers \[0\]; it does at \[1, 3\]"):
        sequence(backend, TOKENS, Plan((Hook("q.0", capture=Capture()),)))
    bound = sequence(backend, TOKENS, Plan((Hook("q.*", capture=Capture()),))).plan
    assert [str(site) for site in bound.hooks[0].sites] == ["q.1", "q.3"]
    assert backend.info.n_heads == 4
    backend.close()


GENERATING = ("gemma4_text", "deepseek_v3", "qwen3_next", "jamba", "granite", "opt", "phimoe", "mimo_v2_flash")


@pytest.mark.parametrize("kind", GENERATING)
def test_a_generation_reads_and_edits_what_a_run_does(kind: str, tmp_path: Path) -> None:
    """Two prompts together, every site captured, with an edit: as a plain forward over the tokens that came of it."""
    backend = load("torch", write(kind, tmp_path, **UNEVEN[kind]))
    routed = backend.info.site("router_logits") is not None
    edit = Add(Tensor.of(np.array([3.0, -3.0, 1.0, 0.0], np.float32))) if routed else Scale(0.5, heads=(0,))
    hooks = (Hook("router_logits.*" if routed else "z.*", edit=edit), *every_site(backend, "generate").hooks)
    plan = Plan(hooks)
    prompts = [
        sequence(backend, tokens, plan, mode="generate", max_new=3, name=f"{len(tokens)}") for tokens in (TOKENS, OTHER)
    ]
    for prompt, found in zip((TOKENS, OTHER), generate(backend, prompts), strict=True):
        forced = run(backend, found.tokens[:-1], plan, prompt_length=len(prompt))
        assert_same(found.captured, forced, 2e-4)
        plain = run(backend, found.tokens[:-1], Plan(hooks[-1:]), prompt_length=len(prompt))
        changed = next(values.values for key, values in forced.items() if key[1] == "logits")
        assert _error(changed, next(iter(plain.values())).values) > 1e-3
    backend.close()


def _modules(folder: Path, tokens: list[int], wanted: dict[str, Where]) -> dict[tuple[str, int], Any]:
    """What transformers' modules read and give, with its own eager attention: (site, layer) → [row, …] in one piece."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    modules, found = dict(model.named_modules()), dict[tuple[str, int], Any]()
    handles: list[Any] = []
    for path, module in modules.items():
        layers, _, below = path.partition("layers.")[2].partition(".")
        for name, (places, side) in wanted.items():
            if "layers." in path and layers.isdigit() and below in places.split("|"):
                note = partial(_note, found, (name, int(layers)), side)
                handles.append(module.register_forward_hook(note, with_kwargs=True))
    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)
    return {key: value.reshape(len(tokens), -1).numpy() for key, value in found.items()}


def _note(found: dict[tuple[str, int], Any], key: tuple[str, int], side: str, module: Any, *seen: Any) -> None:
    args, kwargs, output = seen
    if side == "given":
        _, chosen, weights = (*args, *kwargs.values())
        n_experts = next(weight.shape[0] for weight in module.parameters())
        value = torch.zeros(len(weights), n_experts)
        for row in range(len(weights)):  # as its name says, one by one
            for expert, weight in zip(chosen[row].tolist(), weights[row].tolist(), strict=True):
                value[row, expert] = weight
    elif side == "input":
        value = args[0] if args else kwargs["hidden_states"]
    else:
        value = output[0] if isinstance(output, tuple) else output
    found[key] = value.detach().clone().float()


def _error(found: Any, expected: Any) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
