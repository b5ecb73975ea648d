"""Grids: which cells there are and how their axes are named."""

from __future__ import annotations

import pytest

from probewire.analysis.attribution.grid import Cell, expand_sites, make_grid
from probewire.clients import Client, InvalidArgument


def test_kinds_that_share_layers_have_a_layer_axis(tiny: Client) -> None:
    info = tiny.describe()
    one = make_grid(info, "resid_pre", 4)
    assert one.axes == {"layer": [0, 1, 2], "position": [0, 1, 2, 3]}
    two = make_grid(info, ["attn_out", "mlp_out"], 4, "all")
    assert two.axes == {"site": ["attn_out", "mlp_out"], "layer": [0, 1, 2]}
    assert two.cells[3] == Cell("mlp_out.0", None, None)
    assert two.positions is None


def test_other_sites_have_their_names(tiny: Client) -> None:
    axes, names = expand_sites(tiny.describe(), ["embed", "z.1:3"])
    assert axes == {"site": ["embed", "z.1", "z.2"]}
    assert names == ("embed", "z.1", "z.2")
    assert make_grid(tiny.describe(), "z.1", 4, [-1], [3, 0]).axes == {"layer": [1], "position": [-1], "head": [3, 0]}


def test_heads_are_those_of_the_site(tiny: Client) -> None:
    info = tiny.describe()
    assert make_grid(info, "z", 2, "all", "all").shape == (3, 4)
    assert make_grid(info, "k", 2, "all", "all").shape == (3, 2)
    for sites, heads, match in [
        ("mlp_out", "all", "mlp_out has no heads"),
        (["q", "k"], "all", "differ in heads"),
        ("z", [4], "allowed: 0 … 3"),
        ("z", "each", "'each'; allowed"),
    ]:
        with pytest.raises(InvalidArgument, match=match):
            make_grid(info, sites, 2, "all", heads)


def test_bad_sites_and_positions(tiny: Client) -> None:
    info = tiny.describe()
    for sites, positions, match in [
        ([], None, "no sites"),
        ("resid_pre.3", None, "layers 0:3"),
        (["z", "z.1"], None, "the same tensor twice"),
        ("router_logits", None, "has no site router_logits"),
        ("z", [4], "are not in a prompt of 4 tokens"),
        ("z", [], "are not in a prompt"),
        ("z", "each", "'each'; allowed"),
    ]:
        with pytest.raises(InvalidArgument, match=match):
            make_grid(info, sites, 4, positions)
