"""Derivation finds, in what one forward shows, the tables that were once written by hand, and those of many others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probewire.protos.errors import ProbewireError
from probewire.protos.spec import Add, Capture, Hook, Plan, Scale
from probewire.protos.tensors import Tensor
from tests.backends.derived import SIZES, derived, logits_of, write
from tests.backends.model.anatomy.rows import ROWS
from tests.parity.harness import load, run, sequence
from tests.tiny_models import tiny_checkpoint

TOKENS, OTHER = list(range(10, 26)), list(range(30, 60))


@pytest.fixture(params=["torch", "mlx"])
def library(request: pytest.FixtureRequest) -> str:
    """Whose modules are looked at: the code that derives is the same."""
    return request.param


@pytest.mark.parametrize(("kind", "library"), ROWS)
def test_every_row_is_found_again(library: str, kind: str, tmp_path: Path) -> None:
    """Path, side, part and all."""
    backend = derived(tiny_checkpoint(kind, tmp_path), backend=library)
    assert backend.derived is not None
    assert backend.derived.family == ROWS[kind, library]
    assert backend.info.generate
    backend.close()


def test_the_default_model_is_found_again(library: str) -> None:
    """Real weights, whose values are so large that a small term would hide in them if closeness were enough; in float32, where
    it is loaded for more (tests/parity/test_default_model.py)."""
    from probewire.backends.checkpoints import resolve_model

    backend = derived(resolve_model("").folder, "bfloat16", library)
    assert backend.derived is not None
    assert backend.derived.family == ROWS["llama", library]
    assert backend.info.generate
    assert " checks at " in backend.info.proof
    assert backend.info.refused == {}
    backend.close()


GROUPED = {**SIZES, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 16}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
WHOLE, UNGATED, EXPERTS = 21, 20, 20
FULL: dict[str, tuple[dict[str, Any], int]] = {
    "gpt_neox": ({**SIZES, "intermediate_size": 256}, 17),  # four times the width, as mlx-lm has built in
    "phi": (GROUPED, 17),
    "cohere": (GROUPED, 18),
    "olmo": (GROUPED, WHOLE),
    "olmo2": (GROUPED, WHOLE),
    "olmo3": ({**GROUPED, **WINDOWS}, WHOLE),
    "gemma": (HEADS, WHOLE),
    "glm": (HEADS, WHOLE),
    "glm4": (HEADS, WHOLE),
    "helium": (HEADS, WHOLE),
    "seed_oss": (HEADS, WHOLE),
    "ernie4_5": (GROUPED, WHOLE),
    "exaone4": ({**GROUPED, **WINDOWS}, WHOLE),
    "granite": ({**GROUPED, "residual_multiplier": 0.5, "logits_scaling": 2.0}, WHOLE),
    "granite_swa": ({**GROUPED, "sliding_window": 8}, WHOLE),
    "starcoder2": (GROUPED, UNGATED),
    "arcee": (GROUPED, UNGATED),
    "mixtral": ({**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, EXPERTS),
    "qwen2_moe": ({**GROUPED, **MIXTURE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}, EXPERTS),
    "qwen3_moe": ({**HEADS, **MIXTURE, "moe_intermediate_size": 32}, EXPERTS),
    "olmoe": ({**GROUPED, **MIXTURE}, EXPERTS),
}
"""Architecture → its config, and how many sites it has; each generates too."""
NOT_IN_MLX = ("olmo", "granite_swa", "arcee")
"""mlx-lm has no code for two of them, and that for the first needs a package of its own."""


@pytest.mark.parametrize("kind", FULL)
def test_an_architecture_without_a_row(library: str, kind: str, tmp_path: Path) -> None:
    """Its sites are proven, its numbers are transformers' own, alone and beside a longer one, and it generates."""
    fields, n_sites = FULL[kind]
    folder = write(kind, tmp_path, **fields)
    if library == "mlx" and kind in NOT_IN_MLX:
        with pytest.raises(ProbewireError, match="the torch backend"):
            load(library, folder)
        return
    backend = load(library, folder)
    info = backend.info
    assert len(info.sites) == n_sites, info.refused
    assert info.generate, info.generate_note
    assert info.attention == ("eager" if kind == "granite_swa" else "sdpa")  # the fused kernel knows no sinks
    wanted = [f"{site.name}.{layer}" for site in info.sites if site.layers for layer in site.layers]
    plan = Plan(tuple(Hook(name, capture=Capture()) for name in ("logits", *wanted)))
    alone = run(backend, TOKENS, plan)
    expected = logits_of(tmp_path, TOKENS)
    assert _error(alone[0, "logits", ""].values, expected) <= 1e-4
    beside = backend.run([sequence(backend, OTHER, plan, name="long"), sequence(backend, TOKENS, plan)])[1]
    for row in beside.rows:
        site = row.sites[0]
        found = alone[row.hook, site, ""].values
        # Masked scores are −inf in both.
        assert _error(np.nan_to_num(row.values[0], neginf=0.0), np.nan_to_num(found, neginf=0.0)) <= 1e-4, site
    backend.close()


def test_the_gate_is_before_the_activation(tmp_path: Path) -> None:
    """relu of what relu squared gives is that again: the module that computes first is the gate."""
    backend = load("torch", write("arcee", tmp_path, **GROUPED))
    assert backend.derived is not None
    assert backend.derived.family.taps["mlp_gate"].path == "mlp.up_proj"
    assert backend.derived.activation == "relu2"
    backend.close()


PARTLY: dict[str, tuple[dict[str, Any], str]] = {
    "gptj": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "eager"),
    "bloom": ({"hidden_size": 64, "n_layer": 2, "n_head": 4}, "eager"),
    "falcon": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, "sdpa"),
    "mamba": ({"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, "none"),
}


@pytest.mark.parametrize("kind", PARTLY)
def test_attention_of_its_own_is_refused_and_the_stream_is_not(kind: str, tmp_path: Path) -> None:
    fields, attention = PARTLY[kind]
    backend = load("torch", write(kind, tmp_path, **fields))
    info = backend.info
    assert info.attention == attention
    assert {"resid_pre", "resid_post", "final_norm", "logits"} <= {site.name for site in info.sites}
    assert info.refused["q"] == "no layer calls the attention function once"
    assert info.generate, info.generate_note
    assert "not every layer calls the attention function once" in info.generate_note
    assert not info.batching
    found = run(backend, TOKENS, Plan((Hook("logits", capture=Capture()),)))[0, "logits", ""].values
    assert _error(found, logits_of(tmp_path, TOKENS)) <= 1e-4
    backend.close()


def _error(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_a_neighbours_raw_hook_at_the_same_tensor_changes_nothing(tmp_path: Path) -> None:
    """Under its module's name one adds to what another, under its site's name, scales: each has what it has alone."""
    backend = load("torch", write("gpt_neox", tmp_path, **SIZES))
    seen = Hook("final_norm", capture=Capture())
    raw = Plan((Hook("module:gpt_neox.layers.1.mlp:input", edit=Add(Tensor.of(np.ones(64, np.float32)))), seen))
    named = Plan((Hook("mlp_in.1", edit=Scale(0.5)), Hook("resid_post.1", edit=Scale(0.9)), seen))
    together = backend.run([sequence(backend, TOKENS, raw, name="raw"), sequence(backend, TOKENS, named)])
    for plan, result in zip((raw, named), together, strict=True):
        assert result.error is None
        alone = next(iter(run(backend, TOKENS, plan).values())).values
        assert _error(result.rows[-1].values[0], alone) <= 1e-5
    assert _error(together[0].rows[-1].values[0], together[1].rows[-1].values[0]) > 1e-2
    backend.close()
