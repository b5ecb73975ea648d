"""Finding circuits: the fewest units, on paper and on a real model."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.patching import patch
from probewire.analysis.circuits.ablated import ablated
from probewire.analysis.circuits.discovery import acdc_nodes, prune_ranking
from probewire.analysis.circuits.faithfulness import faithfulness
from probewire.analysis.circuits.space import head_space, make_space
from probewire.clients import Client, InvalidArgument, Kl, LogitDifference
from tests.analysis.circuits.additive import Additive

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"


def test_the_fewest_that_reach_the_target() -> None:
    worth = np.array([0.5**i for i in range(40)])
    model = Additive(worth.tolist())
    for target in (0.3, 0.5, 0.8, 0.95, 0.999):
        expected = int((worth.cumsum() / worth.sum() < target).sum()) + 1
        found = prune_ranking(model, worth, target=target, method="by worth")
        assert len(found.circuit) == expected
        assert found.circuit.origin.faithfulness >= target  # pyright: ignore
        assert found.circuit.origin.method == "by worth"
    assert [n for n, _ in found.tried] == sorted({n for n, _ in found.tried})


def test_pruning_a_real_ranking(tiny: Client) -> None:
    metric, space = LogitDifference((65,), (80,)), head_space(tiny.describe(), 9)
    scores = patch(tiny, CLEAN, CORRUPT, "z", metric, heads="all").effect
    model = ablated(tiny, CLEAN, CORRUPT, metric, space)
    sign = np.sign(model.full - model.empty)
    found = prune_ranking(model, sign * scores.values, target=0.5)
    assert 0 < len(found.circuit) < space.size
    assert faithfulness(model, found.circuit) == pytest.approx(found.circuit.origin.faithfulness, abs=1e-9)
    assert found.circuit.origin.faithfulness >= 0.5  # pyright: ignore


def test_nodes_that_the_output_does_not_miss_are_dropped(tiny: Client) -> None:
    space = make_space(tiny.describe(), ["attn_out", "mlp_out"], n_tokens=9)
    model = ablated(tiny, CLEAN, CORRUPT, Kl("clean"), space)
    found = acdc_nodes(model, tau=1e-3)
    assert not found.mask[:, :3].any()  # the prompts differ from position 3 on, so nothing before it is missed
    assert not found.mask[2, :8].any()  # nor is anything of the last layer but at the last position
    assert not found.mask[5, :8].any()
    assert 0 < found.mask.sum() < space.size
    assert found.kl == pytest.approx(float(model.means([found.mask])[0]), abs=1e-9)
    assert found.kl < float(model.means([np.zeros(space.shape, dtype=bool)])[0])
    assert (found.rise[found.mask] >= 1e-3).all()
    assert (found.rise[~found.mask] < 1e-3).all()
    everything = acdc_nodes(model, tau=1e9)
    assert not everything.mask.any()


def test_bad_input(tiny: Client) -> None:
    metric, space = LogitDifference((65,), (80,)), head_space(tiny.describe())
    model = ablated(tiny, CLEAN, CORRUPT, metric, space)
    with pytest.raises(InvalidArgument, match=r'the metric Kl\("clean"\)'):
        acdc_nodes(model)
    with pytest.raises(InvalidArgument, match="tau must be above 0"):
        acdc_nodes(ablated(tiny, CLEAN, CORRUPT, Kl("clean"), space), tau=0)
    with pytest.raises(InvalidArgument, match="target must be in 0 … 1"):
        prune_ranking(model, np.zeros(space.shape), target=1.5)
