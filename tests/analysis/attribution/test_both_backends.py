"""Every method gives the same on PyTorch and on MLX, on three families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from probewire.analysis.attribution import (
    attribution_patching,
    edge_attribution,
    grad_drop,
    neuron_graph,
    patch,
    path_patching,
    qk_fix,
    relp,
    relp_patching,
    trace,
)
from probewire.analysis.circuits import ablated, curve, edge_circuits, neuron_space
from probewire.clients import Client, LogitDifference
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))
TOLERANCE = 1e-4
"""Relative to the largest value; measured up to 1.4e-5 on llama in float32."""


def neuron_curve(client: Client) -> Any:
    space = neuron_space(client.describe(), len(client.tokenize(CLEAN).token_ids))
    model = ablated(client, CLEAN, CORRUPT, METRIC, space, progress=False)
    scores = np.random.default_rng(0).normal(size=space.shape)
    return curve(model, scores, fractions=(0.1, 0.5, 1.0)).faithfulness


def some_edges(client: Client) -> Any:
    model = edge_circuits(client, CLEAN, CORRUPT, METRIC)
    return model.means([np.random.default_rng(0).random(model.space.shape) < 0.6])


ENDS = (["embed", "mlp_out.0", ("z.0", 1)], ["attn_resid.1", ("q.2", 1), "logits"])
METHODS: dict[str, Callable[[Client], Any]] = {
    "patch": lambda c: patch(c, CLEAN, CORRUPT, ["attn_out", "mlp_out"], METRIC).effect,
    "heads": lambda c: patch(c, CLEAN, CORRUPT, "z", METRIC, heads="all", direction="noise").effect,
    "path_patching": lambda c: path_patching(c, CLEAN, CORRUPT, *ENDS, METRIC).effect,
    "trace": lambda c: trace(c, CLEAN, "cd", answer="q", seeds=2).effect,
    "integrated": lambda c: attribution_patching(c, CLEAN, CORRUPT, "resid_pre", METRIC, steps=4).effect,
    "relp_patching": lambda c: relp_patching(c, CLEAN, CORRUPT, "mlp_act", METRIC, units=True).effect,
    "relp": lambda c: relp(c, CLEAN, "mlp_act", METRIC, units=True).mean,
    "grad_drop": lambda c: grad_drop(c, CLEAN, CORRUPT, "mlp_out", METRIC).effect,
    "edges": lambda c: edge_attribution(c, CLEAN, CORRUPT, METRIC, steps=3).effect,
    "graph": lambda c: neuron_graph(c, CLEAN, threshold=0.03).adjacency,
    "neuron circuits": neuron_curve,
    "edge circuits": some_edges,
}
LLAMA_ONLY: dict[str, Callable[[Client], Any]] = {
    "qk_fix": lambda c: qk_fix(c, CLEAN, CORRUPT, METRIC)["q"].effect,
    "edges from heads": lambda c: edge_attribution(c, CLEAN, CORRUPT, METRIC, heads=True).effect,
}


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def backends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, ...]]:
    folder = str(tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny")))
    with ExitStack() as stack:
        services = [
            InProcessService.create(folder, backend=name, dtype="float32", device="cpu") for name in ("torch", "mlx")
        ]
        yield tuple(stack.enter_context(Client.inprocess(service)) for service in services)


def test_they_agree(backends: tuple[Client, ...]) -> None:
    methods = METHODS | (LLAMA_ONLY if backends[0].describe().family == "llama" else {})
    errors = {name: relative_error(*(np.asarray(method(one)) for one in backends)) for name, method in methods.items()}
    assert max(errors.values()) <= TOLERANCE, errors


def relative_error(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    assert np.abs(one).max() > 0
    return float(np.abs(one - other).max() / np.abs(one).max())
