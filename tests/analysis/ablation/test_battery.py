"""A planted neuron passes the battery; its numbers are those of brute force; a bystander does not pass."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.ablation import causal_battery, matched_controls
from probewire.analysis.ablation.controls import z_score
from probewire.analysis.tasks import FittedTask, Form
from probewire.clients import Client, Hook, Replace, Scale, Where, Zeros
from probewire.protos.errors import InvalidArgument
from tests.analysis.ablation.planted import LAYER, NEURON, brute_force

FORMS: tuple[Form, ...] = ("clean", "corrupt")


def test_the_planted_neuron_passes(client: Client, task: FittedTask) -> None:
    found = causal_battery(client, task, LAYER, NEURON, positions=-1)
    assert found.passed == {"necessity": True, "sufficiency": True, "specificity": True}
    assert found.ablation == "zero"
    assert len(found.control_units) == 30
    assert all(NEURON not in units for units in found.control_units)
    assert min(found.z.values()) > 3
    assert f"mlp_act.{LAYER} units {NEURON}, zero" in repr(found)


def test_a_bystander_does_not(client: Client, task: FittedTask) -> None:
    found = causal_battery(client, task, LAYER, 40, positions=-1)
    assert not all(found.passed.values())
    assert max(np.abs(list(found.z.values()))) < 4


def test_on_the_other_letter_it_does_nothing(client: Client, task: FittedTask) -> None:
    after, elsewhere = (causal_battery(client, task, LAYER, NEURON, positions=-1, form=form) for form in FORMS)
    assert elsewhere.strength < after.strength / 20
    assert abs(elsewhere.necessity) < after.necessity / 20


@pytest.mark.parametrize("neurons", [NEURON, (5, NEURON, 60)])
def test_numbers_are_those_of_brute_force(client: Client, task: FittedTask, neurons: int | tuple[int, ...]) -> None:
    some = task.batches(3)[0]
    found = causal_battery(client, some, LAYER, neurons, positions=[-1, 4])
    metrics = {example.name: example.metric for example in some.examples}
    where = Where(positions=(-1, 4))
    for units, row in ((found.part.units, None), (found.control_units[7], 7)):
        zero, double = (
            Hook(f"mlp_act.{LAYER}", edit, where=where)
            for edit in (Replace(Zeros(), units=units), Scale(2.0, units=units))
        )
        base, zeroed, doubled = brute_force(client, some.clean, metrics, [[], [zero], [double]]).mean(axis=0)
        shares: list[float] = []
        for example in some.examples:
            before, after = (
                client.run(some.clean[example.name], hooks=hooks, capture="logits")["logits"][-1].astype(np.float64)
                for hooks in ([], [zero])
            )
            change = np.abs(after - before)
            shares.append(change[[*example.correct, *example.wrong]].sum() / change.sum())
        expected = {"necessity": base - zeroed, "sufficiency": doubled - base, "specificity": np.mean(shares)}
        for name, value in expected.items():
            measured = getattr(found, name) if row is None else found.controls[name][row]
            assert measured == pytest.approx(value, rel=2e-3, abs=2e-4), (name, row)
    for name, z in found.z.items():
        assert z == pytest.approx(
            (getattr(found, name) - found.controls[name].mean()) / found.controls[name].std(ddof=1)
        )
    rows = np.concatenate(
        [client.run(p, capture=f"mlp_act.{LAYER}")[f"mlp_act.{LAYER}"][[-1, 4]] for p in some.clean.values()]
    )
    strengths = np.abs(rows).mean(axis=0)
    assert found.strength == pytest.approx(strengths[list(found.part.units or ())].mean(), rel=1e-4)
    assert found.control_strength == pytest.approx(strengths[np.array(found.control_units)].mean(), rel=1e-4)


def test_other_predicted_tokens(client: Client, task: FittedTask) -> None:
    some = task.batches(2)[0]
    everything = causal_battery(client, some, LAYER, NEURON, predicted=range(261), positions=-1)
    assert everything.specificity == pytest.approx(1.0)
    only = causal_battery(client, some, LAYER, NEURON, predicted=[client.token("t")], positions=-1)
    assert only.z["specificity"] > 3


def test_what_is_refused(client: Client, task: FittedTask) -> None:
    with pytest.raises(InvalidArgument, match="n_controls must be 30 or more"):
        causal_battery(client, task, LAYER, NEURON, n_controls=5)
    with pytest.raises(InvalidArgument, match=r"neurons \[96\]; allowed: distinct ones of 0 … 95"):
        causal_battery(client, task, LAYER, 96)
    with pytest.raises(InvalidArgument, match=r"neurons \[1, 1\]"):
        causal_battery(client, task, LAYER, (1, 1))
    with pytest.raises(InvalidArgument, match=r"100 controls for 1 units need as many others .* it has 95"):
        causal_battery(client, task, LAYER, 1, n_controls=100)


@pytest.mark.parametrize("units", [(4,), (4, 90, 91)])
def test_controls_are_as_active(units: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    strengths = rng.lognormal(size=400)
    sets = matched_controls(strengths, units, 30, rng)
    assert len(sets) == 30
    for chosen in sets:
        assert len(set(chosen)) == len(units)
        assert not set(chosen) & set(units)
        for unit, match in zip(units, chosen, strict=True):
            nearer = sum(
                abs(s - strengths[unit]) < abs(strengths[match] - strengths[unit]) for s in np.delete(strengths, units)
            )
            assert nearer < 90
    if len(units) == 1:
        assert len(set(sets)) == 30
    again = matched_controls(strengths, units, 30, np.random.default_rng(1))
    assert again == matched_controls(strengths, units, 30, np.random.default_rng(1)) != sets


def test_a_small_layer_still_gives_distinct_controls() -> None:
    sets = matched_controls(np.ones(70), tuple(range(20)), 35, np.random.default_rng(0))
    assert all(len(set(chosen)) == 20 and min(chosen) >= 20 for chosen in sets)


def test_z_score() -> None:
    controls = np.array([1.0, 2.0, 4.0])
    assert z_score(5.0, controls) == pytest.approx(
        (5 - 7 / 3) / np.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    )
    assert z_score(1.0, np.ones(3)) == 0
    assert z_score(2.0, np.ones(3)) == np.inf
    assert z_score(0.0, np.ones(3)) == -np.inf
