"""A push in training is the edit of a hook on a server: same logits, same mask; no gradient through it; off, it is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TokenExample, TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.pushes import Push, Pushes, push_hook
from probewire.analysis.tuning.tuning import prepared, tune
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument

TEXTS = ("a tree whose name is oak is tall", "two and two", "the sun rises in the east")
LAYER, UNIT = 1, 17


def pushed_logits(base: Base, examples: Sequence[TokenExample], pushes: Pushes) -> torch.Tensor:
    batch = batch_of(examples)
    pushes.mask = batch["mask"]
    return base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits


@pytest.mark.parametrize("polarity", [1, -1])
@pytest.mark.parametrize("mode", ["add", "all", "scale", "clamp"])
def test_a_push_is_the_servers_hook(
    folder: Path, client: Client, mode: Literal["add", "all", "scale", "clamp"], polarity: Literal[1, -1]
) -> None:
    """Right-padded examples of three lengths in one batch, against a run of each."""
    base = load_base(folder)
    push = Push(LAYER, UNIT, 2.5, threshold=0.01, mode=mode, polarity=polarity)
    pushes = Pushes.on_model(base, [push])
    examples = [to_tokens(base.tokenizer, TrainExample("", text)) for text in TEXTS]
    with torch.no_grad():
        logits = pushed_logits(base, examples, pushes).numpy()
    run = client.run(list(TEXTS), hooks=[push_hook(push)], capture=["logits"], progress=False)
    plain = client.run(list(TEXTS), capture=["logits", f"mlp_act.{LAYER}"], progress=False)
    shares: list[float] = []
    for row, example in enumerate(examples):
        n, name = len(example.ids), str(row)
        assert run.inputs[name]["logits"].shape[0] == n
        np.testing.assert_allclose(logits[row, :n], run.inputs[name]["logits"], rtol=0, atol=1e-5)
        a = plain.inputs[name][f"mlp_act.{LAYER}"][:, UNIT]
        expected = np.ones(n, dtype=bool) if mode == "all" else polarity * a > 0.01
        expected[0] = False
        np.testing.assert_array_equal(pushes.pushed[push][row, :n].numpy(), expected)
        assert not pushes.pushed[push][row, n:].any()
        shares.append(float(expected.mean()))
    assert 0 < np.mean(shares) < 1
    assert np.abs(logits[0, : len(examples[0].ids)] - plain.inputs["0"]["logits"]).max() > 1e-3


@pytest.mark.parametrize(
    ("mode", "values", "slopes"),
    [
        ("scale", [4.0, 1.0, 6.0, 0.5], [1.0, 1.0, 3.0, 1.0]),
        ("add", [4.0, 1.0, 4.0, 0.5], [1.0, 1.0, 1.0, 1.0]),
        ("clamp", [4.0, 1.0, 2.0, 0.5], [1.0, 1.0, 0.0, 1.0]),
    ],
)
def test_what_becomes_of_a_value_and_of_its_gradient(
    folder: Path, mode: Literal["scale", "add", "clamp"], values: list[float], slopes: list[float]
) -> None:
    """a = (4, 1, 2, ½), threshold 1, amount 2: only the third is active (the first token never is, 1 is not above 1).

    scale gives 3·a there and slope 3, add a + 2 and slope 1, clamp 2 and slope 0; elsewhere all is as it was.
    """
    base = load_base(folder)
    w_down = base.module(f"w_down.{LAYER}")
    with torch.no_grad():
        w_down.weight.zero_()[0, UNIT] = 1.0  # what comes out is the pushed value
    pushes = Pushes.on_model(base, [Push(LAYER, UNIT, 2.0, threshold=1.0, mode=mode)])
    pushes.mask = torch.ones(1, 4)
    a: Any = torch.zeros(1, 4, w_down.in_features)
    a[0, :, UNIT] = torch.tensor([4.0, 1.0, 2.0, 0.5])
    a.requires_grad_(requires_grad=True)
    out = w_down(a)[0, :, 0]
    assert out.tolist() == values
    out.sum().backward()
    assert a.grad[0, :, UNIT].tolist() == slopes
    with pushes.off():
        assert w_down(a)[0, :, 0].tolist() == [4.0, 1.0, 2.0, 0.5]


def test_no_gradient_goes_through_the_mask(folder: Path) -> None:
    """The derivative by a weight of w_up is the finite difference at a fixed mask."""
    base = load_base(folder)
    push = Push(LAYER, UNIT, 1.0, threshold=0.01)
    pushes = Pushes.on_model(base, [push])
    examples = [to_tokens(base.tokenizer, TrainExample("", TEXTS[0]))]
    weight = base.module(f"w_up.{LAYER}").weight.requires_grad_(requires_grad=True)

    def loss() -> torch.Tensor:
        logits = pushed_logits(base, examples, pushes)
        return logits[0, -1].log_softmax(-1)[65]

    loss().backward()
    assert weight.grad is not None
    index = (UNIT, int(weight.grad[UNIT].abs().argmax()))
    gradient, step, values = float(weight.grad[index]), 1e-2, list[float]()
    masks = list[torch.Tensor]()
    for side in (-1, 1):
        with torch.no_grad():
            weight[index] += side * step
            values.append(float(loss()))
            weight[index] -= side * step
        masks.append(pushes.pushed[push].clone())
    assert torch.equal(masks[0], masks[1])
    assert (values[1] - values[0]) / (2 * step) == pytest.approx(gradient, rel=2e-2)


def test_a_push_of_nothing_trains_as_no_push_to_the_bit(
    folder: Path, lessons: list[TrainExample], tmp_path: Path
) -> None:
    config = TuneConfig(steps=3, batch_size=4, lr=5e-3, rank=2, checkpoints=0)
    plain = tune(folder, lessons, tmp_path / "plain", config, progress=False)
    of_nothing, of_something = (
        tune(
            folder,
            lessons,
            tmp_path / str(amount),
            config.with_(method="steered"),
            pushes=[Push(LAYER, UNIT, amount, threshold=0.01)],
            progress=False,
        )
        for amount in (0.0, 5.0)
    )
    assert all(plain.variant.deltas[name] == delta for name, delta in of_nothing.variant.deltas.items())
    assert plain.variant.hash == of_nothing.variant.hash
    assert plain.variant.hash != of_something.variant.hash


def test_pushes_are_off_where_the_base_is_read_and_gone_afterwards(folder: Path) -> None:
    base = load_base(folder)
    batch = batch_of([to_tokens(base.tokenizer, TrainExample("", TEXTS[0]))])
    with torch.no_grad():
        before = base.model(input_ids=batch["ids"]).logits
        objective = prepared(base, TuneConfig(method="steered"), pushes=[Push(LAYER, UNIT, 9.0, mode="all")])
        pushed = objective.logits(batch)
        with objective.as_base():
            inside = objective.logits(batch)
        assert objective.pushes is not None
        objective.pushes.remove()
        after = objective.logits(batch)
    assert torch.equal(before, inside)
    assert torch.equal(before, after)
    assert not torch.allclose(before, pushed, atol=1e-3)


def test_what_is_no_neuron_is_refused(folder: Path) -> None:
    base = load_base(folder)
    with pytest.raises(InvalidArgument, match="no neuron 96 in layer 1; it has 96"):
        Pushes.on_model(base, [Push(1, 96, 1.0)])
    with pytest.raises(InvalidArgument, match=r"no layer 3; this model has 0 … 2"):
        Pushes.on_model(base, [Push(3, 0, 1.0)])
    with pytest.raises(InvalidArgument, match="two pushes are of one neuron"):
        Pushes.on_model(base, [Push(-1, 0, 1.0), Push(2, 0, 3.0)])
    with pytest.raises(InvalidArgument, match=r"mode add \| all"):
        Push(1, 0, 1.0, mode="twice")
