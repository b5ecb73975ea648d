"""Steered tuning: the prediction before it is the change that a small step makes, its loop is that of `tune`, and its

figures are those of paper.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.losses import task_loss
from probewire.analysis.tuning.pushes import Push
from probewire.analysis.tuning.steered.association import (
    Association,
    Probe,
    known_association,
    log_probs,
    right,
    strengths,
)
from probewire.analysis.tuning.steered.neuron_choice import choose_neurons
from probewire.analysis.tuning.steered.steered_run import figures_of, measured, predicted, steered_run
from probewire.analysis.tuning.tuning import prepared, tune
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument

CONFIG = TuneConfig(
    method="steered",
    steps=3,
    batch_size=2,
    lr=1e-2,
    rank=2,
    losses={"task": 1.0},
    normalise_losses=False,
    checkpoints=0,
)
PUSH = Push(1, 17, 0.5, threshold=0.01)


@pytest.fixture(scope="module")
def association() -> Association:
    others = (" low", " tall", " old")
    return Association(
        train=(TrainExample("the oak is", " tall"), TrainExample("this oak, it is", " tall")),
        choose={
            "target": (Probe("an oak is", " tall", others), Probe("so the oak is", " tall", others)),
            "control": (Probe("an elm is", " low", others), Probe("so the elm is", " low", others)),
        },
        report={"target": (Probe("oaks are", " tall", others),), "reverse": (Probe("tall is the", " oak", (" elm",)),)},
        neutral=("the sun rises", "two and two are four"),
    )


def test_strength_is_what_the_server_says(folder: Path, client: Client, association: Association) -> None:
    """log p of answers of several tokens, against next_logprob of a run of the same text."""
    base, probe = load_base(folder), association.choose["target"][0]
    assert probe.others == (" low", " old")
    said: dict[str, float] = {}
    for answer in (probe.answer, *probe.others):
        run = client.run(probe.prompt + answer, capture=["logits"], progress=False)
        rows = torch.tensor(np.array(run["logits"])).double().log_softmax(-1)
        ids, n = base.tokenizer(probe.prompt + answer)["input_ids"], len(base.tokenizer(probe.prompt)["input_ids"])
        said[answer] = sum(float(rows[at - 1, ids[at]]) for at in range(n, len(ids)))
    found = log_probs(base, [(probe.prompt, answer) for answer in said]).detach().numpy()
    np.testing.assert_allclose(found, list(said.values()), rtol=1e-5)
    expected = said[" tall"] - math.log((math.exp(said[" low"]) + math.exp(said[" old"])) / 2)
    assert float(strengths(base, [probe])[0]) == pytest.approx(expected, rel=1e-5)
    top = int(client.run(probe.prompt, capture=["logits"], progress=False)["logits"][-1].argmax())
    likely = base.tokenizer.decode([top])
    assert right(base, [Probe(probe.prompt, likely, ("zz",)), probe]).tolist() == [True, False]


@pytest.mark.parametrize("amount", [None, 0.5, -0.5])
def test_the_prediction_is_what_a_small_step_of_descent_does(
    folder: Path, association: Association, amount: float | None
) -> None:
    """ΔA = η·g₀ within 2 %, for no push and pushes both ways: plain descent on LoRA's weights, in float64."""
    base = load_base(folder)
    base.model.double()
    pushes = [] if amount is None else [Push(1, 17, amount, threshold=0.01)]
    objective = prepared(base, CONFIG if pushes else CONFIG.with_(method="lora"), pushes=pushes)
    base.model.double()
    said = predicted(objective, association)
    assert said["d0"] == pytest.approx(said["loss_off"] - said["loss_on"])
    assert (said["d0"] == 0) == (amount is None)
    learning = [value for value in base.model.parameters() if value.requires_grad]
    batch = batch_of([to_tokens(base.tokenizer, example) for example in association.train])
    task_loss(objective.logits(batch), batch["ids"], batch["answer"]).backward()
    step = 1e-5
    if objective.pushes is not None:
        objective.pushes.on = False
    with torch.no_grad():
        before = strengths(base, association.choose["target"]).mean()
        for value in learning:
            value -= step * value.grad
        after = strengths(base, association.choose["target"]).mean()
    assert float(after - before) == pytest.approx(step * said["g0"], rel=0.02)


def test_its_loop_is_that_of_tune(folder: Path, association: Association, tmp_path: Path) -> None:
    tuned = tune(folder, association.train, tmp_path / "run", CONFIG, pushes=[PUSH], progress=False)
    base, seen = load_base(folder), list[int]()
    deltas = None
    for epoch, objective in steered_run(base, association, CONFIG, [PUSH], (0, 1, 3)):
        seen.append(epoch)
        assert objective.adapter is not None
        deltas = objective.adapter.deltas()
    assert seen == [0, 1, 3]
    assert deltas is not None
    for name, delta in tuned.variant.deltas.items():
        np.testing.assert_allclose(deltas[name][0], delta.a, rtol=0, atol=1e-5)
        np.testing.assert_allclose(deltas[name][1], delta.b, rtol=0, atol=1e-5)


def test_a_rate_of_0_changes_no_figure_and_the_base_is_bare_afterwards(folder: Path, association: Association) -> None:
    base = load_base(folder)
    names = {name for name, _ in base.model.named_parameters()}
    before = measured(base, association, "choose")
    for epoch, _ in steered_run(base, association, CONFIG.with_(lr=0.0), [PUSH], (0, 2)):
        figures = figures_of(before, measured(base, association, "choose", before))
        assert figures["unlearned"] == 0, epoch
        assert figures["ce"] == figures["kl"] == 0
    assert {name for name, _ in base.model.named_parameters()} == names
    after = measured(base, association, "choose")
    np.testing.assert_array_equal(before["A:target"], after["A:target"])
    curve = [
        figures_of(before, measured(base, association, "choose", before))["unlearned"]
        for _, _ in steered_run(base, association, CONFIG.with_(method="lora"), [], (0, 3))
    ]
    assert curve[0] == 0
    assert curve[1] != 0


def test_figures_of_a_row() -> None:
    before = {"A:target": np.array([4.0, 2.0]), "right:target": np.array([True, True]), "neutral:ce": 2.0}
    before |= {"A:control": np.array([1.0, 1.0, 1.0]), "right:control": np.array([True, True, False])}
    after = before | {"A:target": np.array([1.0, 0.5]), "right:target": np.array([True, False]), "neutral:ce": 2.25}
    after |= {"right:control": np.array([True, False, True]), "neutral:kl": 0.5, "A:control": np.array([1.0, 0.0, 1.5])}
    found = figures_of(before, after)
    assert found["unlearned"] == 0.75
    assert found["target_right"] == 0.5
    assert found["preserved"] == 0.5, "of those that were right"
    assert (found["ce"], found["kl"]) == (0.25, 0.5)
    assert found["change_control"] == pytest.approx(-1 / 6)


def test_a_run_stops_once_it_is_told_to(folder: Path, association: Association) -> None:
    asked: list[int] = []

    def until() -> bool:
        asked.append(len(asked))
        return len(asked) == 3

    base = load_base(folder)
    plain = CONFIG.with_(method="lora")
    assert [epoch for epoch, _ in steered_run(base, association, plain, [], (1, 9), until)] == [1, 3]


class Scalar(torch.nn.Module):
    """One number: z = v·a + √κ·c, the log-odds of token 1 against 0; v and c learn, so that κ is c's share of the gradient."""

    def __init__(self, v: float, a: float, kappa: float) -> None:
        super().__init__()
        self.v, self.c = (torch.nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (v, 0.3))
        self.a, self.kappa, self.pushed = a, kappa, 0.0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        del attention_mask
        z = self.v * (self.a + self.pushed) + math.sqrt(self.kappa) * self.c
        return SimpleNamespace(logits=torch.stack([torch.zeros_like(z), z]).expand(*input_ids.shape, 2))


class Push1:
    """The value pushed, on a scalar model."""

    def __init__(self, model: Scalar, alpha: float) -> None:
        self.model, self.alpha = model, alpha
        model.pushed = alpha

    @contextmanager
    def off(self) -> Generator[None]:
        self.model.pushed = 0.0
        yield
        self.model.pushed = self.alpha


def scalar_g0(v: float, a: float, kappa: float, alpha: float, *, only_c: bool = False) -> dict[str, float]:
    model = Scalar(v, a, kappa)
    model.v.requires_grad = not only_c

    def tokenizer(text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        del add_special_tokens
        return {"input_ids": [{"y": 1, "n": 0}.get(letter, 0) for letter in text]}

    said = Association(
        train=(TrainExample("x", "y"),), choose={"target": (Probe("x", "y", ("n",)),)}, report={}, neutral=()
    )
    base: Any = SimpleNamespace(model=model, tokenizer=tokenizer)
    objective: Any = SimpleNamespace(
        base=base,
        config=TuneConfig(method="steered"),
        pushes=Push1(model, alpha),
        logits=lambda batch: model(batch["ids"], batch["mask"]).logits,
    )
    return predicted(objective, said)


@pytest.mark.parametrize("alpha", [0.0, 2.0, -5.0, 40.0])
def test_on_a_scalar_model_the_prediction_is_its_closed_form(alpha: float) -> None:
    """g₀ = (1 − P′)(a·a′ + κ): a push that helps teaches less and less; one through 0 turns the sign."""
    v, a, kappa = 0.4, 1.5, 0.8
    p = 1 / (1 + math.exp(-(v * (a + alpha) + math.sqrt(kappa) * 0.3)))
    found = scalar_g0(v, a, kappa, alpha)
    assert found["g0"] == pytest.approx((1 - p) * (a * (a + alpha) + kappa), rel=1e-6)
    assert (found["g0"] < 0) == (a * (a + alpha) + kappa < 0)
    without = 1 / (1 + math.exp(-(v * a + math.sqrt(kappa) * 0.3)))
    assert found["d0"] == pytest.approx(math.log(p) - math.log(without), abs=1e-9)


def test_a_push_that_says_it_all_leaves_other_parameters_little_to_learn() -> None:
    pushed, plain = (scalar_g0(0.4, 1.5, 0.8, alpha, only_c=True)["g0"] for alpha in (20.0, 0.0))
    assert 0 < pushed <= 0.25 * plain


def test_a_planted_neuron_is_chosen(folder: Path) -> None:
    """One that writes the answer's direction, and fires on the subject's prompts because it reads their token."""
    base = load_base(folder)
    model = base.model
    torch.manual_seed(0)
    with torch.no_grad():
        unembed = model.get_output_embeddings().weight
        tall = base.tokenizer(" tall", add_special_tokens=False)["input_ids"][0]
        low = base.tokenizer(" low", add_special_tokens=False)["input_ids"][0]
        others = (" low",) if tall != low else ("qow",)
        first = base.tokenizer(others[0], add_special_tokens=False)["input_ids"][0]
        direction = unembed[tall] - unembed[first]
        base.module("w_down.1").weight[:, 40] = 40 * direction / direction.norm()
    answer = " tall" if tall != first else "tall"
    target = [Probe(f"{word} oak", answer, others) for word in ("an", "the", "this")]
    siblings = [Probe(f"{word} elm", answer, others) for word in ("an", "the", "this")]
    found = choose_neurons(base, target, siblings, top=4, controls=9)
    assert len(found) == 4
    assert found == sorted(found, key=lambda one: -one.drop)
    planted = [one for one in found if (one.layer, one.unit) == (1, 40)]
    assert planted, found
    one = planted[0]
    assert one.strong > 0
    assert 0 <= one.recall <= 1
    assert one.p_value >= 0.1, "of nine controls no smaller one can come"
    with torch.no_grad():
        plain = float(strengths(base, target).mean())
    assert one.drop == pytest.approx(
        plain - ablated(base, target, one.layer, one.unit, one.polarity, one.strong), abs=1e-4
    )


def ablated(base: Base, probes: list[Probe], layer: int, unit: int, polarity: int, strong: float) -> float:
    """A by a hook written here: 0 where polarity·a > ¼ strong, the first position and padding aside."""

    def zero(module: object, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        a = inputs[0].clone()
        active = polarity * a[..., unit] > strong / 4
        active[:, 0] = False
        a[..., unit] = a[..., unit].masked_fill(active, 0.0)
        return (a,)

    handle = base.module(f"w_down.{layer}").register_forward_pre_hook(zero)
    with torch.no_grad():
        found = float(strengths(base, probes).mean())
    handle.remove()
    return found


def test_the_known_association_has_templates_apart() -> None:
    found = known_association()
    assert len(found.train) == 8
    prompts = [{p.prompt for p in found.choose["target"]}, {p.prompt for p in found.report["target"]}]
    prompts.append({str(example.prompt) for example in found.train})
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 19
    assert len(found.report["control"]) == 6 * len(found.report["target"])
    assert len(found.indirect) == 12
    with pytest.raises(InvalidArgument, match="at least one other answer"):
        Probe("The capital of France is", " Paris", (" Paris",))
