"""Faithfulness and its kin: by paper on an additive model, and the identities on a real one."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.attribution_patching import attribution_patching
from probewire.analysis.attribution.relp import GRAPH_RULES
from probewire.analysis.circuits.ablated import ablated
from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.faithfulness import (
    FRACTIONS,
    Curve,
    area_from_one,
    area_under,
    completeness,
    curve,
    faithfulness,
    incompleteness,
    judge,
    mib,
    minimality,
    random_control,
)
from probewire.analysis.circuits.space import head_space, neuron_space
from probewire.clients import Client, InvalidArgument, LogitDifference
from tests.analysis.circuits.additive import Additive

WORTH = [4.0, 3.0, 2.0, 1.0, 0.0, 0.0, -2.0, 0.0, 0.0, 0.0]
MODEL = Additive(WORTH)  # F(M) − F(∅) = 8
PAPER = np.array(WORTH)


def mask(*units: int) -> np.ndarray:
    return np.isin(np.arange(10), units)


def test_faithfulness_and_completeness() -> None:
    assert faithfulness(MODEL, mask(0, 1)) == pytest.approx(7 / 8)
    assert completeness(MODEL, mask(0, 1)) == pytest.approx(1 / 8)
    assert faithfulness(MODEL, mask()) == 0.0
    assert faithfulness(MODEL, np.ones(10, dtype=bool)) == 1.0
    with pytest.raises(InvalidArgument, match="faithfulness has no scale"):
        faithfulness(Additive([1.0, -1.0]), np.array([True, False]))


def test_a_curve_keeps_the_best() -> None:
    fractions = (0.1, 0.2, 0.35, 0.5, 1.0)
    signed = curve(MODEL, WORTH, fractions=fractions)
    assert signed.n_units == (1, 2, 3, 5, 10)
    assert signed.faithfulness == pytest.approx([4 / 8, 7 / 8, 9 / 8, 10 / 8, 1])
    absolute = curve(MODEL, WORTH, fractions=fractions, absolute=True)
    assert absolute.faithfulness == pytest.approx([4 / 8, 7 / 8, 9 / 8, 8 / 8, 1])  # −2 comes fourth, 1 fifth
    assert area_under(signed) == pytest.approx(0.1 * 5.5 / 8 + 0.15 * 1 + 0.15 * 9.5 / 8 + 0.5 * 9 / 8)
    assert area_from_one(absolute) == pytest.approx(0.1 * 2.5 / 8 + 0.15 * 1 / 8 + 0.15 * 0.5 / 8)
    found = mib(MODEL, WORTH, fractions=fractions)
    assert (found.cpr, found.cmd) == (pytest.approx(area_under(signed)), pytest.approx(area_from_one(absolute)))


def test_a_curve_of_ones() -> None:
    """MIB's fractions begin at 0.001, so the area of a perfect ranking is .999."""
    ones = Curve(FRACTIONS, (1,) * 10, np.ones(10), "patch")
    assert area_under(ones) == pytest.approx(0.999, abs=1e-12)
    assert area_from_one(ones) == 0.0


def test_bad_fractions() -> None:
    for fractions in ((), (0.5, 0.1), (0.1, 1.1), (0.1, 0.1)):
        with pytest.raises(InvalidArgument, match="ascend within 0 … 1"):
            curve(MODEL, WORTH, fractions=fractions)


def test_random_circuits_are_worse_than_a_good_one() -> None:
    found = random_control(MODEL, mask(0, 1), n=99, seed=1, by_site=False)
    assert found.faithfulness == pytest.approx(7 / 8)
    assert len(found.random) == 99
    worth = {round(float(v) * 8) for v in found.random}
    assert worth <= {round(a + b) for i, a in enumerate(WORTH) for b in WORTH[i + 1 :]}
    assert found.p_value == (1 + (found.random >= 7 / 8).sum()) / 100
    assert found.p_value < 0.1
    same = random_control(MODEL, mask(0, 1), n=3)  # one unit a site: by site there is no other circuit
    assert same.p_value == 1.0


def test_an_additive_circuit_is_as_incomplete_as_what_it_lacks() -> None:
    """F(C∖K) and F(M∖K) differ by what is outside C, whatever K."""
    assert incompleteness(MODEL, mask(0, 1)) == pytest.approx(1 / 8)
    assert incompleteness(MODEL, np.ones(10, dtype=bool)) == pytest.approx(0.0)


def test_redundant_units_show_in_the_incompleteness() -> None:
    """Two units of which the circuit keeps one: faithful alone, and no longer once its own unit is taken away."""
    model = Additive([4.0, 4.0, 0.0], pair=-4.0)  # either is enough
    assert faithfulness(model, np.array([True, False, False])) == 1.0
    assert incompleteness(model, np.array([True, False, False])) == pytest.approx(1.0)


def test_every_unit_of_a_minimal_circuit_matters_somewhere() -> None:
    found = minimality(MODEL, mask(0, 3, 6, 8))
    assert found.indices == (0, 3, 6, 8)
    assert found.change == pytest.approx([4 / 8, 1 / 8, 2 / 8, 0])
    assert found.share == 0.75
    assert len(minimality(MODEL, mask(0, 3, 6, 8), max_units=2).change) == 2
    backup = Additive([4.0, 4.0, 0.0], pair=-4.0)
    both = minimality(backup, np.array([True, True, False]), n=8)
    assert both.change[:2] == pytest.approx([1.0, 1.0])  # each matters where the other is gone


def test_the_identities_hold_on_a_real_model(tiny: Client) -> None:
    space = neuron_space(tiny.describe(), 9)
    model = ablated(tiny, "abcdefgh", "abxdefyh", LogitDifference((65,), (80,)), space)
    every = np.ones(space.shape, dtype=bool)
    assert faithfulness(model, every) == pytest.approx(1.0, abs=1e-5)
    assert faithfulness(model, ~every) == pytest.approx(0.0, abs=1e-5)
    assert completeness(model, every) == pytest.approx(0.0, abs=1e-5)
    scores = np.random.default_rng(0).normal(size=space.shape)
    found = curve(model, scores, fractions=(0.01, 0.1, 0.5, 1.0))
    assert found.faithfulness[-1] == pytest.approx(1.0, abs=1e-5)
    circuit = judge(model, Circuit.of(space, space.top(scores, 259), scores))
    assert circuit.origin.faithfulness == pytest.approx(found.faithfulness[1], abs=1e-9)
    assert circuit.origin.ablation == "patch"
    with pytest.raises(InvalidArgument, match="the circuit is of Space"):
        faithfulness(ablated(tiny, "ab", "ac", LogitDifference((65,), (80,)), head_space(tiny.describe())), circuit)


def test_few_neurons_keep_a_behaviour_of_the_default_model(default_client: Client) -> None:
    """IOI, patch ablation: one neuron in a hundred is enough where RelP with all rules ranks them."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    metric = LogitDifference((default_client.token(" Mary"),), (default_client.token(" John"),))
    space = neuron_space(default_client.describe(), 14)
    model = ablated(default_client, clean, corrupt, metric, space)
    kept: dict[str, np.ndarray] = {}
    for name, rules in {"AtP": (), "RelP": GRAPH_RULES}.items():
        scores = attribution_patching(
            default_client, clean, corrupt, "mlp_act", metric, units=True, rules=rules, direction="noise"
        ).importance
        kept[name] = curve(model, scores, fractions=(0.005, 0.01), absolute=True).faithfulness
    random = curve(model, np.random.default_rng(0).normal(size=space.shape), fractions=(0.005, 0.01)).faithfulness
    assert kept["RelP"][1] >= 0.8
    assert kept["RelP"][0] > kept["AtP"][0] + 0.1
    assert kept["AtP"][0] > random[0] + 0.5
    assert np.abs(random).max() < 0.05
