"""Gradients, RelP scores and neuron graphs of the real default model: PyTorch against MLX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from probewire.analysis.attribution import neuron_graph
from probewire.clients import Client, LogitDifference
from probewire.server.worker.inprocess import InProcessService
from tests.parity.harness import relative_error

IOI = "When Mary and John went to the store, John gave a drink to"
RELP = ("ln", "identity", "half", "ah")

RANK = 0.999
"""Least Spearman correlation."""
ERROR = 1e-4
"""Greatest relative error of whole tensors (their largest difference over their largest value), float32."""


pytestmark = pytest.mark.slow  # two models of 135 million; tiny ones are compared in every run


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, Client]]:
    made = {name: Client.inprocess(InProcessService.create(backend=name, dtype="float32")) for name in ("torch", "mlx")}
    yield made
    for client in made.values():
        client.close()


def _metric(client: Client) -> LogitDifference:
    return LogitDifference((client.token(" Mary"),), (client.token(" John"),))


@pytest.mark.parametrize("rules", [(), RELP])
def test_gradients_and_scores(clients: dict[str, Client], rules: tuple[str, ...]) -> None:
    sites = ["mlp_act.*", "resid_pre.*", "attn_out.*"]
    one, other = (c.gradients(IOI, _metric(c), at=sites, capture=sites, rules=rules) for c in clients.values())
    assert one.metric == pytest.approx(other.metric, abs=1e-3)
    for name in ("mlp_act", "resid_pre", "attn_out"):
        ours, theirs = one.gradients.stack(name), other.gradients.stack(name)
        assert relative_error(ours, theirs) < ERROR, name
        scores = [found.gradients.stack(name) * found.captures.stack(name) for found in (one, other)]
        assert _spearman(*scores) > RANK, name
        assert relative_error(*scores) < ERROR, name


def test_graphs(clients: dict[str, Client]) -> None:
    one, other = (neuron_graph(c, IOI, metric=_metric(c), threshold=0.03, progress=False) for c in clients.values())
    assert [(n.kind, n.layer, n.position, n.unit, n.token) for n in one.nodes] == [
        (n.kind, n.layer, n.position, n.unit, n.token) for n in other.nodes
    ]
    assert len(one.nodes) > 40
    ours, theirs = np.asarray(one.adjacency), np.asarray(other.adjacency)
    drawn = (ours != 0) | (theirs != 0)
    assert _spearman(ours[drawn], theirs[drawn]) > RANK
    assert relative_error(ours, theirs) < ERROR


def _spearman(one: Any, other: Any) -> float:
    """The correlation of ranks; ties in order of place, of which float32 gradients have hardly any."""
    ranks = [np.argsort(np.argsort(np.ravel(values))) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
