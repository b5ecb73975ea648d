"""The torch backend against transformers' own forward, on tiny models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.parity.harness import TOLERANCE, assert_same, every_site, generate, load, relative_error, run, sequence
from tests.tiny_models import FAMILIES, tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111]
WINDOWED_PHI3 = "phi3 with a window"


def _folder(family: str, tmp: Path) -> Path:
    if family == WINDOWED_PHI3:
        return tiny_checkpoint("phi3", tmp, sliding_window=8)
    return tiny_checkpoint(family, tmp)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize("family", [*FAMILIES, WINDOWED_PHI3])
def test_captures_equal_output_hidden_states(family: str, tmp: Path) -> None:
    folder = _folder(family, tmp)
    backend = load("torch", folder)
    captured = {site: c.values for (_, site, _), c in run(backend, PROMPT, every_site(backend)).items()}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        expected = model.eval()(torch.tensor([PROMPT]), output_hidden_states=True, output_attentions=True)
    assert relative_error(captured["logits"], expected.logits[0].numpy()) <= 1e-5
    n_layers = backend.info.n_layers
    for layer in range(n_layers):
        states = expected.hidden_states[layer][0].numpy()
        assert relative_error(captured[f"resid_pre.{layer}"], states) <= 1e-5
        if layer:
            assert np.array_equal(captured[f"resid_post.{layer - 1}"], captured[f"resid_pre.{layer}"])
        assert relative_error(captured[f"attn_probs.{layer}"], expected.attentions[layer][0].numpy()) <= 1e-5
    assert relative_error(captured["final_norm"], expected.hidden_states[n_layers][0].numpy()) <= 1e-5


@pytest.mark.parametrize("family", [*FAMILIES, WINDOWED_PHI3])
def test_generation_equals_teacher_forcing_past_the_window(family: str, tmp: Path) -> None:
    backend = load("torch", _folder(family, tmp))
    plan = every_site(backend, "generate")
    prompts = [PROMPT, list(range(40, 75)), [9] * 12]
    made = generate(
        backend, [sequence(backend, p, plan, mode="generate", max_new=14, name=f"s{i}") for i, p in enumerate(prompts)]
    )
    for prompt, found in zip(prompts, made, strict=True):
        forced = run(backend, found.tokens[:-1], plan, prompt_length=len(prompt))
        assert_same(found.captured, forced, TOLERANCE["float32"])
        logits = run(backend, found.tokens, every_site(backend))
        greedy = next(c.values for (_, site, _), c in logits.items() if site == "logits").argmax(-1)
        assert found.tokens[len(prompt) :] == greedy[len(prompt) - 1 : -1].tolist()
