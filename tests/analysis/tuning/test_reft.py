"""ReFT: what is trained is what the hooks do on a server, R stays orthonormal, and only chosen tokens change."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from probewire.analysis.tuning import tuning as module
from probewire.analysis.tuning.base import load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.objective import Objective
from probewire.analysis.tuning.reft import chosen_positions
from probewire.analysis.tuning.tuning import prepared, tune
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument

CONFIG = TuneConfig(
    method="reft", steps=5, batch_size=4, lr=2e-2, rank=3, layers=(0, -1), positions=(3, 2), checkpoints=1
)


@pytest.mark.parametrize("kind", ["loreft", "direft"])
def test_the_hooks_are_what_was_trained(
    folder: Path,
    client: Client,
    lessons: list[TrainExample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Literal["loreft", "direft"],
) -> None:
    """The trainer's own logits of examples of several lengths, against runs of their tokens with the variant's hooks."""
    made: list[Objective] = []
    monkeypatch.setattr(
        module, "prepared", lambda *given, **options: made.append(prepared(*given, **options)) or made[-1]
    )
    config = CONFIG.with_(low_rank_subspace=kind)
    tuned = tune(folder, lessons, tmp_path / "run", config, base=client.describe(), progress=False)
    [objective] = made
    assert tuned.curves["task"][-1] < tuned.curves["task"][0]
    assert not tuned.variant.deltas
    assert [hook.site for hook in tuned.variant.plan.hooks] == ["resid_post.0", "resid_post.2"]
    assert tuned.variant.manifest.base.model_hash == client.describe().model_hash
    for R, _, _ in objective.reft.parameters.values() if objective.reft else ():
        orthonormal = torch.allclose(R @ R.T, torch.eye(3), atol=1e-5)
        assert orthonormal == (kind == "loreft")
    prompts = [lesson.prompt for lesson in lessons[:3]] + ["a much longer prompt than those that were trained on is"]
    batch = batch_of([to_tokens(objective.base.tokenizer, TrainExample(str(p), "")) for p in prompts])
    with torch.no_grad():
        logits = objective.logits(batch).numpy()
        with objective.as_base():
            base = objective.logits(batch).numpy()
    run = client.run([str(p) for p in prompts], hooks=tuned.variant.plan.hooks, capture=["logits"], progress=False)
    for row in range(len(prompts)):
        served = run.inputs[str(row)]["logits"]
        scale = np.abs(served).max()
        np.testing.assert_allclose(logits[row, : len(served)], served, rtol=0, atol=1e-5 * scale)
        assert np.abs(served - base[row, : len(served)]).max() > 1e-2 * scale


def test_it_begins_as_the_base(folder: Path) -> None:
    base = load_base(folder)
    objective = prepared(base, CONFIG)
    batch = batch_of([to_tokens(base.tokenizer, TrainExample("a tree whose name is", " oak"))])
    with torch.no_grad(), objective.as_base():
        before = objective.logits(batch)
    with torch.no_grad():
        np.testing.assert_allclose(objective.logits(batch).numpy(), before.numpy(), rtol=0, atol=1e-5)


def test_first_and_last_of_the_prompt_alone() -> None:
    found = chosen_positions(torch.tensor([4, 6]), 8, (2, 1))
    assert found.int().tolist() == [[1, 1, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1, 0, 0]]
    assert chosen_positions(torch.tensor([5]), 5, (0, 2)).int().tolist() == [[0, 0, 0, 1, 1]]


def test_prompts_that_are_too_short_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"a prompt has \d tokens, and ReFT changes its first 3 and last 2"):
        tune(folder, [TrainExample("oak", " tall")], tmp_path / "run", CONFIG, progress=False)
