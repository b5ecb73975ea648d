"""The torch backend on CUDA: the same answers as on the CPU. Marked `cuda`; not run where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from probewire.backends.model.placement import LayerHome, Placement
from probewire.backends.torch.devices import placed
from probewire.clients import Client
from probewire.protos.edits import Add
from probewire.protos.metrics import Logit
from probewire.protos.spec import Hook, Plan
from probewire.server.worker.inprocess import InProcessService
from tests.parity.harness import CHUNKED, assert_same, every_site, generate, load, run, sequence
from tests.tiny_models import FAMILIES, tiny_checkpoint

pytestmark = pytest.mark.cuda

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111]
TOLERANCE = 1e-3
"""float32 with TF32 off; kernels differ from the CPU's."""


def _on_cuda(folder: Path, dtype: str = "float32") -> Backend:
    return load_backend("torch", folder, model_id="tiny", limits=CHUNKED, dtype=dtype, device="cuda")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_runs_equal_the_cpu(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    cpu, cuda = load("torch", folder), _on_cuda(folder)
    plan = Plan((Hook("resid_post.1", edit=Add(np.ones(64, dtype=np.float32), 0.5)), *every_site(cpu).hooks))
    assert_same(run(cuda, PROMPT, plan), run(cpu, PROMPT, plan), TOLERANCE)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_generation_equals_teacher_forcing(family: str, tmp_path: Path) -> None:
    cuda = _on_cuda(tiny_checkpoint(family, tmp_path))
    plan = every_site(cuda, "generate")
    prompts = [PROMPT, list(range(40, 75)), [9] * 12]
    made = generate(
        cuda, [sequence(cuda, p, plan, mode="generate", max_new=14, name=f"s{i}") for i, p in enumerate(prompts)]
    )
    for prompt, found in zip(prompts, made, strict=True):
        assert_same(found.captured, run(cuda, found.tokens[:-1], plan, prompt_length=len(prompt)), TOLERANCE)


def test_hooks_fire_on_every_step(tmp_path: Path) -> None:
    """Graph replay would run no Python: a hook that fires in the first steps alone would show here."""
    cuda = _on_cuda(tiny_checkpoint("llama", tmp_path), "bfloat16")
    plan = every_site(cuda, "generate")
    [made] = generate(cuda, [sequence(cuda, PROMPT, plan, mode="generate", max_new=64)])
    for found in made.captured.values():
        assert found.positions[-1] == len(PROMPT) + 62


# ---- layers on several devices, and in main memory ---------------------------------------------------------------------


def _placed(folder: Path, device: str, monkeypatch: pytest.MonkeyPatch, homes: list[LayerHome]) -> Backend:
    """Layers where they are told to be, however much is free."""
    monkeypatch.setattr(placed, "placed", lambda devices, *_: Placement(tuple(devices), tuple(homes)))
    return load_backend("torch", folder, model_id="tiny", limits=CHUNKED, dtype="float32", device=device)


def _as_on_one(folder: Path, several: Backend) -> None:
    one = _on_cuda(folder)
    assert several.info.sites == one.info.sites
    plan = Plan((Hook("resid_post.0", edit=Add(np.ones(64, dtype=np.float32), 0.5)), *every_site(one).hooks))
    assert_same(run(several, PROMPT, plan), run(one, PROMPT, plan), TOLERANCE)
    plan = every_site(one, "generate")
    found, wanted = (
        generate(b, [sequence(b, p, plan, mode="generate", max_new=14, name=p_name) for p_name, p in PROMPTS.items()])
        for b in (several, one)
    )
    for here, there in zip(found, wanted, strict=True):
        assert here.tokens == there.tokens
        assert_same(here.captured, there.captured, TOLERANCE)


PROMPTS = {"a": PROMPT, "b": list(range(40, 75)), "c": [9] * 12}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_layers_that_wait_in_main_memory(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    here, waits = LayerHome("cuda:0", "cuda:0"), LayerHome("cuda:0", "cpu")
    n_layers = load("torch", folder).info.n_layers
    several = _placed(folder, "cuda:0,cpu", monkeypatch, [here] + [waits] * (n_layers - 1))
    assert several.info.device == "cuda:0,cpu"
    assert "wait in main memory" in several.info.placement
    _as_on_one(folder, several)


def test_gradients_through_layers_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    homes = [LayerHome("cuda:0", "cuda:0"), *[LayerHome("cuda:0", "cpu")] * 2]
    monkeypatch.setattr(placed, "placed", lambda devices, *_: Placement(tuple(devices), tuple(homes)))
    found: list[Any] = []
    for device in ("cuda:0,cpu", "cuda:0"):
        with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device=device)) as client:
            found.append(client.gradients(PROMPT, Logit(7), at=["resid_pre.*", "mlp_act.*", "q.2"]))
    for site in found[1].gradients.sites:
        gap = np.abs(found[0].gradients[site] - found[1].gradients[site]).max()
        assert gap <= TOLERANCE * np.abs(found[1].gradients[site]).max(), site


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
def test_layers_over_two_gpus(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    several = load_backend("torch", folder, model_id="tiny", limits=CHUNKED, dtype="float32", device="cuda:0,cuda:1")
    assert several.info.device == "cuda:0,cuda:1"
    assert "cuda:1" in several.info.placement
    _as_on_one(folder, several)
