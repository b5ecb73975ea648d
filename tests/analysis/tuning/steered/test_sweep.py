"""Arms and sweeps: each arm's push, controls that write as much, a sweep that goes on, and rules applied to rows made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TrainExample
from probewire.analysis.tuning.pushes import push_hook
from probewire.analysis.tuning.steered.arms import Arm, Neuron, arm_config, arm_pushes, mask_shares, matched_neurons
from probewire.analysis.tuning.steered.association import Association, Probe
from probewire.analysis.tuning.steered.neuron_choice import strong_values
from probewire.analysis.tuning.steered.sweep import read_sweep, run_sweep
from probewire.analysis.tuning.steered.sweep_rows import Row, Sweep
from probewire.clients import Client
from probewire.protos.errors import FailedPrecondition, InvalidArgument

CONFIG = TuneConfig(method="steered", steps=2, lr=2e-2, rank=2, losses={"task": 1.0}, normalise_losses=False)
NEURON = Neuron(1, 17, -1, 0.08)


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder)


@pytest.fixture(scope="module")
def association() -> Association:
    others = (" low", " tall", " old")
    probes = {
        "target": (Probe("an oak is", " tall", others), Probe("so the oak is", " tall", others)),
        "control": (Probe("an elm is", " low", others), Probe("so the elm is", " low", others)),
    }
    return Association(
        train=(TrainExample("the oak is", " tall"), TrainExample("this oak, it is", " tall")),
        choose=probes,
        report=probes | {"reverse": (Probe("tall is the", " oak", (" elm",)),)},
        neutral=("the sun rises", "two and two are four"),
    )


def test_what_each_arm_pushes() -> None:
    other = Neuron(1, 4, 1, 0.5)
    found = {arm: arm_pushes(arm, 3.0, NEURON, other) for arm in ("A", "B", "C", "D", "E", "F", "G", "H")}
    assert found["A"] == found["F"] == []
    [b], [c], [d], [e], [g], [h] = (found[arm] for arm in "BCDEGH")
    assert (b.unit, b.amount, b.threshold, b.mode, b.polarity) == (17, pytest.approx(-0.24), 0.02, "add", -1)
    assert (c.unit, c.amount, c.threshold, c.polarity) == (4, 1.5, 0.125, 1), "its own mask and its own strong value"
    assert replace(d, mode="add") == b
    assert d.mode == "all"
    assert (e.mode, e.amount) == ("scale", 3.0)
    assert (g.mode, g.amount) == ("clamp", 0.0)
    assert h == b
    assert arm_config("H", CONFIG, 2).lr == 0
    assert arm_config("F", CONFIG, 2).ascend
    assert arm_config("F", CONFIG, 2).method == arm_config("A", CONFIG, 2).method == "lora"
    assert arm_config("B", CONFIG, 2) == CONFIG.with_(seed=2)
    with pytest.raises(InvalidArgument, match="pushes another neuron"):
        arm_pushes("C", 1.0, NEURON)
    with pytest.raises(InvalidArgument, match="trains nothing"):
        arm_config("G", CONFIG, 0)


def test_controls_write_as_much_and_have_values_of_their_own(
    base: Base, association: Association, client: Client
) -> None:
    target = association.choose["target"]
    polarity, strong = strong_values(base, target, 1)
    rows = client.run([probe.prompt for probe in target], capture=["mlp_act.1"], progress=False)
    values = [np.asarray(rows.inputs[str(index)]["mlp_act.1"])[1:] for index in range(len(target))]
    up, down = (np.mean([(sign * one).max(0) for one in values], axis=0) for sign in (1, -1))
    np.testing.assert_allclose(strong, np.maximum(np.maximum(up, down), 1e-6), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(polarity > 0, up >= down)
    found = matched_neurons(base, target, NEURON, n=3)
    assert len({one.unit for one in found} | {NEURON.unit}) == 4
    norms = np.linalg.norm(base.module("w_down.1").weight.detach().numpy(), axis=0)
    far = np.abs(norms * strong - norms[17] * NEURON.strong)
    far[17] = np.inf
    for one in found:
        assert far[one.unit] <= np.sort(far)[9], "one of the ten nearest"
        assert one.strong == pytest.approx(strong[one.unit])
    assert found != matched_neurons(base, target, NEURON, n=3, seed=1)


def test_shares_of_tokens_are_those_that_the_server_would_push(
    base: Base, association: Association, client: Client
) -> None:
    [push] = arm_pushes("B", 3.0, NEURON)
    shares = mask_shares(base, [push], association)
    for name, texts in (("target", [p.prompt for p in association.choose["target"]]), ("neutral", association.neutral)):
        run = client.run(list(texts), capture=["mlp_act.1"], progress=False)
        active = np.concatenate(
            [np.asarray(run.inputs[str(i)]["mlp_act.1"])[1:, 17] < -0.02 for i in range(len(texts))]
        )
        assert shares[f"mask_{name}"] == pytest.approx(active.mean())
    assert mask_shares(base, [], association) == {}
    assert push_hook(push).site == "mlp_act.1"


def test_a_sweep_goes_on_and_its_figures_are_those_of_its_prompts(
    base: Base, association: Association, tmp_path: Path
) -> None:
    amounts: dict[Arm, tuple[float, ...]] = {
        "A": (0.0,),
        "B": (20.0,),
        "C": (20.0,),
        "F": (0.0,),
        "G": (0.0,),
        "H": (20.0,),
    }

    def sweep(folder: Path, own: Any) -> Sweep:
        return run_sweep(
            base,
            association,
            NEURON,
            folder,
            CONFIG,
            amounts=own,
            epochs=(1, 2),
            seeds=(0,),
            controls=2,
            progress=False,
        )

    sweep(tmp_path / "cut", {"A": (0.0,), "B": (20.0,)})  # and then the rest
    cut, whole = sweep(tmp_path / "cut", amounts), sweep(tmp_path / "whole", amounts)
    key = lambda row: (row.arm, row.amount, row.control, row.epochs)  # noqa: E731 - a sort's
    lines = [sorted(one.rows, key=key) for one in (cut, whole)]
    assert [key(row) for row in lines[0]] == [key(row) for row in lines[1]]
    for one, other in zip(*lines, strict=True):
        assert one.said == other.said
        np.testing.assert_array_equal(one.after["report"]["A:target"], other.after["report"]["A:target"])
    counts = {arm: sum(row.arm == arm for row in whole.rows) for arm in amounts}
    assert counts == {"A": 2, "B": 2, "C": 4, "F": counts["F"], "G": 1, "H": 2}
    by = {(row.arm, row.amount, row.control, row.epochs): row for row in whole.rows}
    for epochs in (1, 2):
        figures = whole.figures(by["H", 20.0, 0, epochs])
        assert figures["unlearned"] == figures["kl"] == 0, "T3: at rate 0 every evaluation is equal"
    row = by["B", 20.0, 0, 2]
    before, after = whole.before["report"], row.after["report"]
    assert whole.figures(row)["unlearned"] == pytest.approx(1 - after["A:target"].mean() / before["A:target"].mean())
    assert row.said["d0"] == pytest.approx(row.said["loss_off"] - row.said["loss_on"])
    assert {"mask_target", "mask_control", "mask_neutral"} <= set(row.said)
    assert by["A", 0.0, 0, 2].said["d0"] == 0
    assert by["C", 20.0, 0, 2].said["g0"] != by["C", 20.0, 1, 2].said["g0"]
    kl = max(by["B", 20.0, 0, epochs].after["choose"]["neutral:kl"] for epochs in (1, 2))
    ascent = [row for row in whole.rows if row.arm == "F"]
    assert all(row.after["choose"]["neutral:kl"] < kl for row in ascent if not row.last)
    assert whole.table().count("\n") == 1 + len({(r.arm, r.amount, r.epochs) for r in whole.rows})
    assert read_sweep(tmp_path / "whole").table() == whole.table()
    right, of = whole.agreement()
    assert 0 <= right <= of == sum(row.epochs == 1 and row.arm not in "GH" for row in whole.rows)
    with pytest.raises(FailedPrecondition, match="sweep of another neuron"):
        run_sweep(
            base, association, Neuron(1, 18, 1, 0.1), tmp_path / "cut", CONFIG, amounts={"A": (0,)}, epochs=(1, 2)
        )


def made(arm: Arm, amount: float, seed: int, target: list[float], *, kept: float = 1.0, ce: float = 0.0) -> Row:
    right = np.arange(20) < 20 * kept
    one = {"A:target": np.array(target), "right:target": np.ones(4, bool), "right:control": right, "neutral:ce": 2 + ce}
    return Row(arm, amount, 0, seed, 5, True, {"g0": 1.0}, {"choose": one, "report": one})


@pytest.mark.parametrize(
    ("b", "a", "c", "options", "name"),
    [
        ([2.0, 2.1, 1.9, 2.0], [5.0, 5.1, 4.9, 5.0], [4.5, 4.6, 4.4, 4.5], {}, "unlearns"),
        ([4.5, 4.6, 4.4, 4.5], [5.0, 5.1, 4.9, 5.0], [4.9, 5.0, 4.8, 4.9], {}, "prevents"),
        ([2.0, 2.1, 1.9, 2.0], [5.0, 5.1, 4.9, 5.0], [1.9, 2.2, 1.9, 2.0], {}, "not specific"),
        ([5.0, 5.1, 4.9, 5.0], [5.0, 5.1, 4.9, 5.0], [5.0, 5.1, 4.9, 5.0], {}, "no effect"),
        ([2.0, 2.1, 1.9, 2.0], [5.0, 5.1, 4.9, 5.0], [4.5, 4.6, 4.4, 4.5], {"kept": 0.9}, None),
        ([2.0, 2.1, 1.9, 2.0], [5.0, 5.1, 4.9, 5.0], [4.5, 4.6, 4.4, 4.5], {"ce": 0.03}, None),
    ],
)
def test_the_outcome_is_what_the_rule_says(
    b: list[float], a: list[float], c: list[float], options: dict[str, float], name: str | None
) -> None:
    """Base strength 4: below it is unlearned, between it and arm A prevented."""
    rows = [made("B", 3.0, seed, b, **options) for seed in (0, 1, 2)]
    rows += [
        made(arm, amount, seed, own)
        for seed in (0, 1, 2)
        for arm, amount, own in (("A", 0.0, a), ("C", 3.0, c), ("D", 3.0, c))
    ]
    base = made("A", 0.0, 0, [4.0] * 4).after["report"]
    found = Sweep(tuple(rows), {"choose": base, "report": base}).outcome()
    assert (None if found is None else found.name) == name
    if found is not None:
        assert (found.amount, found.epochs, found.of_seeds) == (3.0, 5, 3)
        assert found.drop[0] == pytest.approx(1 - np.mean(b) / 4)
        assert found.over["A"][0] == pytest.approx((np.mean(a) - np.mean(b)) / 4)
        assert found.drop[1] <= found.drop[0] <= found.drop[2]
        alone = Sweep(tuple(row for row in rows if row.arm != "C"), {"choose": base, "report": base}).outcome()
        assert alone is not None
        assert alone.name == "not compared"


def test_what_is_no_sweep_is_refused(base: Base, association: Association, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="holds no sweep"):
        read_sweep(tmp_path)
    for options, said in (
        ({"amounts": {"F": (0.0,)}}, "stopped at arm B's KL"),
        ({"epochs": (0,)}, "epochs are 1 or more"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            run_sweep(base, association, NEURON, tmp_path, CONFIG, **options)
    with pytest.raises(InvalidArgument, match="strong is above 0"):
        Neuron(1, 2, 1, 0.0)
    assert not json.loads("[]")
