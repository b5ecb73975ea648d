"""Grids: which cells there are and how their axes are named."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.ablation.parts import parts_of
from probewire.analysis.attribution import (
    attribution_patching,
    grad_drop,
    logit_lens,
    patch,
    path_patching,
    relp,
    trace,
)
from probewire.analysis.attribution.grid import Cell, expand_sites, make_grid
from probewire.clients import Client, InvalidArgument, Logit


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


def test_layers_are_chosen_and_counted_from_either_end(tiny: Client) -> None:
    info = tiny.describe()
    for layers, found in ((1, [1]), ([2, 0], [2, 0]), ([-1, 0], [2, 0]), (range(1, 3), [1, 2]), (np.array([-2]), [1])):
        grid = make_grid(info, ["attn_out", "mlp_out"], 4, "all", layers=layers)
        assert grid.axes == {"site": ["attn_out", "mlp_out"], "layer": found}
        assert grid.sites == tuple(f"{kind}.{layer}" for kind in ("attn_out", "mlp_out") for layer in found)
    assert make_grid(info, "z.-2:", 4, "all").axes == {"layer": [1, 2]}
    assert make_grid(info, "z.-1", 4, "all").sites == ("z.2",)
    for sites, layers, match in (
        ("resid_pre", [3], r"layers \[3\] given; the model has 0 … 2"),
        ("resid_pre", [-4, 0], r"layers \[-4, 0\] given"),
        ("resid_pre", [], r"layers \[\] given.*at least one"),
        ("resid_pre", [2, -1], r"layers \[2, -1\] name one layer twice"),
        (["resid_pre", "z.1"], [0], "layers= goes with kinds of sites, such as resid_pre, and 'z.1' names its own"),
        ("embed", 0, "'embed' names its own"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            make_grid(info, sites, 4, layers=layers)


def test_every_method_takes_layers(tiny: Client) -> None:
    """The argument that one guesses; counted from the end it is the same layer."""
    prompts, metric = ("abcd", "abxd"), Logit(65)
    for method in (patch, attribution_patching, grad_drop):
        one, same = (method(tiny, *prompts, "mlp_out", metric, layers=layers) for layers in (2, [-1]))
        assert one.effect.axes["layer"] == same.effect.axes["layer"] == (2,)
        assert np.array_equal(one.effect.values, same.effect.values)
        assert np.allclose(one.effect.values, method(tiny, *prompts, "mlp_out", metric).effect.sel(layer=[2]).values)
    assert relp(tiny, "abcd", "mlp_out", metric, layers=-1).per_prompt.axes["layer"] == (2,)
    assert logit_lens(tiny, "abcd", layers=[-1, 0]).layers == (2, 0)
    traced = trace(tiny, "abcd", [1], sites=["resid_post"], layers=[-1], seeds=1, progress=False)
    assert traced.effect.axes["layer"] == (2,)
    one, same = (
        path_patching(tiny, *prompts, [sender], [receiver], metric, progress=False).effect.values
        for sender, receiver in (("mlp_out.-3", "attn_resid.-1"), ("mlp_out.0", "attn_resid.2"))
    )
    assert np.array_equal(one, same)
    assert parts_of(tiny.describe(), "heads", layers=[-1]).axes["layer"] == [2]


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
