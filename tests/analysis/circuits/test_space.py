"""Spaces: shapes, units by index, and the best by score."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.circuits.space import Space, Unit, head_space, make_space, neuron_space
from probewire.clients import Client, InvalidArgument, NamedArray


def test_shapes(tiny: Client) -> None:
    info = tiny.describe()
    assert neuron_space(info, 9).shape == (3, 9, 96)
    assert neuron_space(info).shape == (3, 96)
    assert head_space(info).size == 12
    assert make_space(info, ["attn_out", "mlp_out"], n_tokens=5).shape == (6, 5)
    assert make_space(info, "k", part="head").width == 2
    assert make_space(info, "mlp_out.1", part="unit").width == 64


def test_every_index_is_a_unit(tiny: Client) -> None:
    info = tiny.describe()
    for space in (neuron_space(info, 2), head_space(info), make_space(info, ["attn_out", "mlp_out"], n_tokens=2)):
        found = [space.unit_at(index) for index in range(space.size)]
        assert len(set(found)) == space.size
        assert [space.index_of(unit) for unit in found] == list(range(space.size))
    assert neuron_space(info, 2).unit_at(96 * 3 + 7) == Unit("mlp_act.1", 1, unit=7)
    assert Unit("mlp_act.1", 1, unit=7).name == "mlp_act.1 #7 @1"
    assert Unit("z.0", head=2).name == "z.0 head 2"


def test_units_of_elsewhere(tiny: Client) -> None:
    space = neuron_space(tiny.describe(), 2)
    for unit, match in [
        (Unit("mlp_act.0", 2, unit=0), "out of range"),
        (Unit("mlp_act.0", None, unit=0), "no unit of this space"),
        (Unit("mlp_act.0", 0, head=0), "no unit of this space"),
        (Unit("z.0", 0, unit=0), "no unit of this space"),
        (Unit("mlp_act.0", 0, unit=96), "out of range"),
    ]:
        with pytest.raises(InvalidArgument, match=match):
            space.index_of(unit)
    with pytest.raises(InvalidArgument, match="not both"):
        Unit("z.0", 0, 1, 2)


def test_the_best_by_score() -> None:
    space = Space(("z.0", "z.1"), None, "head", 2)
    scores = [[0.5, -3.0], [2.0, 0.0]]
    assert space.top(scores, 2).tolist() == [[True, False], [True, False]]
    assert space.top(scores, 2, absolute=True).tolist() == [[False, True], [True, False]]
    assert not space.top(scores, 0).any()
    assert space.top(scores, 4).all()
    named = NamedArray([[[0.5, -3.0]], [[2.0, 0.0]]], {"site": ["z", "v"], "layer": [0], "head": [0, 1]})
    assert np.array_equal(space.scores(named), scores)
    for bad, match in [([0.5, 1.0], "need"), ([[np.nan, 1.0], [0.0, 0.0]], "NaN")]:
        with pytest.raises(InvalidArgument, match=match):
            space.top(bad, 1)
    with pytest.raises(InvalidArgument, match="0 … 4"):
        space.top(scores, 5)


def test_spaces_that_cannot_be(tiny: Client) -> None:
    info = tiny.describe()
    for sites, part, match in [
        (["mlp_out", "mlp_act"], "unit", "differ in width"),
        ("attn_probs", None, "cannot be part of a circuit"),
        ("z", "unit", "take part='head'"),
        ("mlp_out", "head", "has no heads"),
    ]:
        with pytest.raises(InvalidArgument, match=match):
            make_space(info, sites, part=part)
    with pytest.raises(InvalidArgument, match="distinct sites"):
        Space(("z.0", "z.0"))
    with pytest.raises(InvalidArgument, match="boolean of shape"):
        head_space(info).checked(np.ones((3, 4)))
