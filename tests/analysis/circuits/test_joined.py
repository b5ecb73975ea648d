"""Circuits over heads and MLPs at once, run on a model: the hooks of a joined space are those of its parts."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.circuits import (
    Circuit,
    EdgeSpace,
    JoinedSpace,
    ablated,
    edge_circuits,
    faithfulness,
    head_space,
    make_space,
    random_control,
)
from probewire.analysis.circuits.faithfulness import _drawn
from probewire.clients import Client, LogitDifference, Replace, Zeros, hook

CLEAN, CORRUPT, METRIC = "abcde", "abxde", LogitDifference((101,), (120,))


def test_a_joined_circuit_is_its_parts_together(tiny: Client) -> None:
    info = tiny.describe()
    heads, mlps = head_space(info), make_space(info, "mlp_out")
    space = JoinedSpace((heads, mlps))
    model = ablated(tiny, [CLEAN], [CORRUPT], METRIC, space, ablation="zero", progress=False)
    mask = np.ones(space.size, dtype=bool)
    mask[[1, space.size - 1]] = False  # a head of layer 0, and the last MLP
    by_hand = tiny.sweep(
        [CLEAN],
        [METRIC],
        [[hook("z.0", Replace(Zeros(), heads=(1,))), hook(f"mlp_out.{info.n_layers - 1}", Replace(Zeros()))]],
        progress=False,
    )
    assert model.means([mask])[0] == pytest.approx(float(by_hand.array().values.ravel()[0]), abs=1e-9)
    circuit = Circuit.of(space, mask, np.ones(space.size))
    assert faithfulness(model, circuit) == pytest.approx(
        (model.means([mask])[0] - model.empty) / (model.full - model.empty)
    )


def test_a_circuit_of_edges_is_judged_by_its_edges(tiny: Client) -> None:
    model = edge_circuits(tiny, [CLEAN], [CORRUPT], METRIC)
    mask = model.space.exists.copy()
    mask[1, -1] = False
    circuit = Circuit.of_edges(model.space, mask, np.ones(model.space.shape))
    assert (circuit.edge_mask(model.space) == mask).all()
    assert faithfulness(model, circuit) == pytest.approx(faithfulness(model, mask), abs=1e-12)


def test_random_ones_have_as_many_at_each_site_and_only_what_there_is(tiny: Client) -> None:
    info, rng = tiny.describe(), np.random.default_rng(0)
    space = JoinedSpace((head_space(info), make_space(info, "mlp_out")))
    mask = np.zeros(space.size, dtype=bool)
    mask[:2] = True  # two heads of layer 0
    drawn = [_drawn(space, mask, rng, by_site=True) for _ in range(20)]
    assert all(one[: info.n_heads].sum() == 2 and one.sum() == 2 for one in drawn)
    assert len({one.tobytes() for one in drawn}) > 2
    anywhere = [_drawn(space, mask, rng, by_site=False) for _ in range(20)]
    assert any(one[info.n_heads :].any() for one in anywhere)
    edges = EdgeSpace(("embed", "attn_out.0", "mlp_out.0"), ("attn_resid.0", "mlp_resid.0", "resid_post.0"))
    kept = np.zeros(edges.shape, dtype=bool)
    kept[0, 0] = kept[2, 2] = True
    for by_site in (True, False):
        one = _drawn(edges, kept, rng, by_site)
        assert one.sum() == 2
        assert not (one & ~edges.exists).any()


def test_a_random_control_of_a_joined_space_is_no_copy_of_the_circuit(tiny: Client) -> None:
    info = tiny.describe()
    space = JoinedSpace((head_space(info), make_space(info, "mlp_out")))
    model = ablated(tiny, [CLEAN], [CORRUPT], METRIC, space, progress=False)
    mask = np.zeros(space.size, dtype=bool)
    mask[[0, 5, 9]] = True
    found = random_control(model, mask, n=6)
    assert np.ptp(found.random) > 0
