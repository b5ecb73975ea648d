"""Layers that keep a state in place of keys: their models generate in batches, and nobody's state is a neighbour's. What
cannot share a forward goes one after another, through mlx-lm's own caches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import torch
from transformers import AutoModelForCausalLM

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Add
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.protos.tensors import Tensor
from tests.backends.derived import SIZES, write
from tests.parity.harness import assert_same, generate, load, relative_error, run, sequence

GROUPED = {**SIZES, "num_key_value_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "jamba": {
        **GROUPED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "granitemoehybrid": {  # dense, as the smallest are published; its attention turns nothing
        **GROUPED,
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "num_local_experts": 0,
        "shared_intermediate_size": 32,
    },
    "nemotron_h": {  # caches are counted without the layers that keep nothing: attention's is the second
        **GROUPED,
        "head_dim": 16,
        "layers_block_type": ["mamba", "mlp", "attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
    },
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
ALONE = ("gpt_bigcode",)
"""mlx-lm's code takes one position for a whole batch."""
SHORT, LONG, OTHER = list(range(10, 15)), list(range(30, 53)), list(range(60, 77))
SITE = "resid_post.1"
READ = Plan((Hook(SITE, capture=Capture()), Hook("logits", capture=Capture(), where=Where(phase="all"))))
MANY = 12


@pytest.fixture(scope="module", params=list(KINDS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Any]]:
    """The model here, and as transformers has it."""
    folder = write(request.param, tmp_path_factory.mktemp(request.param), **KINDS[request.param])
    backend = load("mlx", folder)
    assert backend.info.generate, backend.info.generate_note
    assert bool(backend.info.batching) == (request.param in ALONE), backend.info.batching
    yield backend, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    backend.close()


def steered() -> Plan:
    vector = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    return Plan((Hook("resid_post.0", edit=Add(Tensor.of(vector))), *READ.hooks))


def test_a_batch_generates_what_transformers_generates(made: tuple[Backend, Any]) -> None:
    backend, own = made
    prompts = (SHORT, LONG, OTHER)
    found = generate(
        backend, [sequence(backend, p, READ, mode="generate", max_new=MANY, name=str(len(p))) for p in prompts]
    )
    for prompt, one in zip(prompts, found, strict=True):
        wanted = own.generate(torch.tensor([prompt]), max_new_tokens=MANY, do_sample=False, eos_token_id=None)
        assert one.tokens == wanted[0].tolist()


def test_a_steered_generation_beside_others_is_the_run_of_its_tokens(made: tuple[Backend, Any]) -> None:
    """The state that an edited row leaves goes on; neighbours come, leave early and change nothing."""
    backend, _ = made
    plan = steered()
    wanted = [
        sequence(backend, SHORT, plan, mode="generate", max_new=MANY, name="steered"),
        sequence(backend, LONG, READ, mode="generate", max_new=MANY, name="leaves"),
        sequence(backend, OTHER, READ, mode="generate", max_new=MANY, name="stays"),
    ]
    found = generate(backend, wanted, cancel_after={"leaves": 3})
    for index, one in ((0, plan), (2, READ)):
        tokens = found[index].tokens
        forced = run(backend, tokens[:-1], one, prompt_length=len(tokens) - MANY)
        for key, value in forced.items():
            if key[1] == SITE:
                assert relative_error(found[index].captured[key].values, value.values) <= 1e-4
    assert backend.engine is not None
    assert backend.engine.cache_held == 0


def test_a_pause_keeps_the_state(made: tuple[Backend, Any]) -> None:
    backend, _ = made
    engine: Any = backend.engine
    [alone] = generate(backend, [sequence(backend, LONG, READ, mode="generate", max_new=MANY)])
    one = sequence(backend, LONG, READ, mode="generate", max_new=MANY, name="paused")
    beside = sequence(backend, SHORT, READ, mode="generate", max_new=2 * MANY, name="beside")
    assert engine.admit(one)
    assert engine.admit(beside)
    while one.n_generated < 4:
        engine.step()
    engine.pause(one)
    for _ in range(3):
        assert all(result.sequence is beside for result in engine.step())
    engine.resume(one)
    while one.n_generated < MANY:
        engine.step()
    engine.remove(one)
    engine.remove(beside)
    assert one.tokens == alone.tokens


def test_attentions_sites_are_of_its_own_layer_and_steps_have_their_least(tmp_path: Path) -> None:
    """Published models' steps go below their least, which mlx-lm takes from another field."""
    folder = write("nemotron_h", tmp_path, **{**KINDS["nemotron_h"], "time_step_min": 0.5})
    plan = Plan(tuple(Hook(f"{one}.*", capture=Capture()) for one in ("q", "k", "v", "z", "attn_out", "resid_post")))
    backend, other = load("mlx", folder), load("torch", folder)
    assert_same(run(backend, LONG, plan), run(other, LONG, plan), 1e-5)
    backend.close()
    other.close()
