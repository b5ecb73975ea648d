"""What a sweep takes out, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.ablation import Part, parts_of
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument


def test_heads_neurons_and_sites(client: Client) -> None:
    info = client.describe()
    heads = parts_of(info, "heads", layers=[0, 2])
    assert heads.axes == {"layer": [0, 2], "head": [0, 1, 2, 3]}
    assert heads.parts[5] == Part("z.2", heads=(1,))
    assert heads.sites == ("z.0", "z.2")
    neurons = parts_of(info, "neurons", indices=[7, 3])
    assert neurons.axes == {"layer": [0, 1, 2], "neuron": [7, 3]}
    assert neurons.parts[1] == Part("mlp_act.0", units=(3,))
    assert len(parts_of(info, "neurons").parts) == 3 * 96
    sites = parts_of(info, "attn_out")
    assert sites.axes == {"layer": [0, 1, 2]}
    assert sites.parts == tuple(Part(f"attn_out.{layer}") for layer in range(3))


def test_a_part_takes_its_own_values() -> None:
    rows = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    np.testing.assert_array_equal(Part("z.0", heads=(2, 0)).of(rows), rows[:, [2, 0]])
    np.testing.assert_array_equal(Part("mlp_act.0", units=(1,)).of(rows[:, 0]), rows[:, 0, [1]])
    assert Part("mlp_out.0").of(rows) is rows
    assert [str(p) for p in (Part("z.0", heads=(2, 0)), Part("blocks.3.hook_mlp_out"))] == [
        "z.0 heads 2, 0",
        "mlp_out.3",
    ]


def test_what_is_not_there_is_refused(client: Client) -> None:
    info = client.describe()
    for over in ("logits", "head", "router_logits", "embed"):
        with pytest.raises(InvalidArgument, match=f'over={over!r}; allowed: "heads", "neurons", or a site'):
            parts_of(info, over)
    with pytest.raises(InvalidArgument, match=r"layers with z: \[3\] given; allowed are distinct ones of 0 … 2"):
        parts_of(info, "heads", layers=[1, 3])
    with pytest.raises(InvalidArgument, match=r"neurons: \[96\] given; allowed are distinct ones of 0 … 95"):
        parts_of(info, "neurons", indices=[96])
    with pytest.raises(InvalidArgument, match=r"heads: \[1, 1\] given"):
        parts_of(info, "heads", indices=[1, 1])
    with pytest.raises(InvalidArgument, match="indices are of heads or neurons"):
        parts_of(info, "attn_out", indices=[1])
    with pytest.raises(InvalidArgument, match="heads or units, not both"):
        Part("z.0", heads=(0,), units=(1,))
