"""The torch backend on CUDA: the same answers as on the CPU. Marked `cuda`; not run where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Add
from probewire.protos.spec import Hook, Plan
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
