"""What is tuned in torch is served by both libraries: deltas, ReFT's affine hooks, and deltas with the neuron's push kept on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import neuron_space
from probewire.analysis.tuning import tuning as module
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.objective import Objective
from probewire.analysis.tuning.pushes import Push, push_hook
from probewire.analysis.tuning.tuning import Tuned, prepared, tune
from probewire.clients import Client, Plan, Variant
from probewire.server.worker.inprocess import InProcessService

PUSHES = (Push(1, 17, 2.5, threshold=0.01), Push(2, 40, 1.5, threshold=0.01, mode="scale", polarity=-1))
PROMPTS = ("a tree whose name is oak is", "well, and a tree whose name is fir is", "two and two are four, are they not")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "circuit": {"full_rank": True},
    "reft": {"layers": (0, -1), "positions": (3, 2)},
    "steered": {},
}


@pytest.fixture(scope="module", params=["torch", "mlx"])
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[Client]:
    service = InProcessService.create(str(folder), backend=request.param, dtype="float32", device="cpu")
    with Client.inprocess(service) as made:
        yield made


@pytest.fixture(scope="module")
def runs(
    folder: Path, client: Client, lessons: list[TrainExample], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Tuned, Objective]]:
    """Method → the run, and the trainer's own model as the run left it."""
    info, found = client.describe(), dict[str, tuple[Tuned, Objective]]()
    space = neuron_space(info)
    mask = np.zeros(space.shape, dtype=bool)
    mask[[0, 1, 2], [3, 40, 95]] = True
    for method, options in METHODS.items():
        made: list[Objective] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                module, "prepared", lambda *given, made=made, **more: made.append(prepared(*given, **more)) or made[-1]
            )
            config = TuneConfig(method=method, steps=4, batch_size=4, lr=2e-2, rank=2, checkpoints=0, **options)
            tuned = tune(
                folder, lessons, tmp_path_factory.mktemp("runs") / method, config, base=info, name=method, progress=False,
                circuit=Circuit.of(space, mask, np.ones(space.shape)) if method == "circuit" else None,
                pushes=PUSHES if method == "steered" else (),
            )  # fmt: skip
        found[method] = (tuned, made[0])
    return found


def trained(objective: Objective, *, pushed: bool) -> list[Any]:
    """The trainer's logits of each prompt."""
    examples = [to_tokens(objective.base.tokenizer, TrainExample(prompt, "")) for prompt in PROMPTS]
    hooked = None
    if pushed:
        hooked = objective.pushes = type(objective.pushes).on_model(objective.base, PUSHES)  # type: ignore[union-attr]
    with torch.no_grad():
        logits = objective.logits(batch_of(examples)).numpy()
    if hooked is not None:
        hooked.remove()
    return [row[: len(example.ids)] for row, example in zip(logits, examples, strict=True)]


@pytest.mark.parametrize("kept_on", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_variant_is_what_was_trained(
    served: Client, runs: dict[str, tuple[Tuned, Objective]], tmp_path: Path, method: str, *, kept_on: bool
) -> None:
    """From its folder, in one batch with the base; a push that is kept on is a hook of the variant, with its condition."""
    if kept_on and method != "steered":
        pytest.skip("only steered tuning has pushes")
    tuned, objective = runs[method]
    variant = Variant.load(tuned.folder / "variant")
    if kept_on:
        plan = Plan(tuple(push_hook(push) for push in PUSHES))
        Variant(variant.deltas, plan, variant.manifest).save(tmp_path / "pushed")
        variant = Variant.load(tmp_path / "pushed")
    expected = trained(objective, pushed=kept_on)
    served.load_variant(variant, name="tuned")
    try:
        found = served.run(list(PROMPTS), capture="logits", variant="tuned", progress=False)
        plain = served.run(list(PROMPTS), capture="logits", progress=False)
        said = served.generate(PROMPTS[0], variant="tuned", max_new_tokens=4, ignore_eos=True)
    finally:
        served.unload_variant("tuned")
    for row, logits in enumerate(expected):
        scale = np.abs(logits).max()
        np.testing.assert_allclose(found.inputs[str(row)]["logits"], logits, rtol=0, atol=1e-4 * scale)
        assert np.abs(plain.inputs[str(row)]["logits"] - logits).max() > 1e-2 * scale
    assert next(iter(said.inputs.values())).new[0].id == int(expected[0][-1].argmax())


def test_the_push_of_a_steered_run_is_gone_unless_it_is_kept(runs: dict[str, tuple[Tuned, Objective]]) -> None:
    tuned, objective = runs["steered"]
    assert not tuned.variant.plan.hooks
    off, on = trained(objective, pushed=False), trained(objective, pushed=True)
    assert max(np.abs(a - b).max() for a, b in zip(off, on, strict=True)) > 1e-3
