"""(g) Patching sweeps against TransformerLens, and what gradients and neuron graphs cost."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from child import Child
from environments import environment
from ratios import Figure, compare, interleaved
from servers import model_folder, probewire
from sizes import Sizes

from probewire.analysis.attribution import neuron_graph
from probewire.clients import Capture, Client, Gather, Input, LogitDifference, capture, hook, patch
from probewire.server.worker.inprocess import InProcessService

__all__ = ["gradients_cost", "patching"]

LENS = ("transformer-lens==4.3.0", "transformers==5.23.0")
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
GRAPH_NODES = 300
RULES = ("ln", "identity", "half", "ah")
OURS, OVER_GRPC, BRUTE, THEIRS = "in process", "over gRPC", "in process, nothing shared", "TransformerLens"


@contextmanager
def _inprocess() -> Generator[Client]:
    with Client.inprocess(InProcessService.create(backend="torch", dtype="float32")) as client:
        yield client


def _metric(client: Client) -> LogitDifference:
    return LogitDifference((client.token(" Mary"),), (client.token(" John"),))


def patching(sizes: Sizes) -> list[Figure]:
    """The resid_pre layer × position grid of one IOI prompt, float32."""
    grids: dict[str, Any] = {}
    with (
        _inprocess() as near,
        probewire("torch", dtype="float32") as served,
        Client(served.grpc) as far,
        Child("lens_child.py", str(model_folder()), python=environment("transformer-lens", *LENS)) as lens,
    ):
        timed = {
            OURS: partial(_grid, grids, OURS, near, share=True),
            OVER_GRPC: partial(_grid, grids, OVER_GRPC, far, share=True),
            THEIRS: partial(_lens_grid, grids, lens, near),
        }
        samples = interleaved(timed, rounds=sizes.analysis_rounds)
        brute = _grid(grids, BRUTE, near, share=False)
    name = "resid_pre grid, 30 layers × 14 positions"
    differences = [float(np.abs(grids[key] - grids[THEIRS]).max()) for key in (OURS, OVER_GRPC, BRUTE)]
    shared = median(samples[OURS])
    return [
        compare(f"{name}: ours / TransformerLens", samples, (OURS, THEIRS), unit="s", target=12.0, times=True),
        compare(f"{name}: over gRPC / in process", samples, (OVER_GRPC, OURS), unit="s", target=0.85, times=True),
        Figure(f"{name}: with sharing / without", (brute / shared,), behind=f"{brute:.1f} / {shared:.2f} s"),
        Figure(
            f"{name}: greatest difference to TransformerLens", tuple(differences), 1e-3, at_most=True, unit="logits"
        ),
    ]


def _grid(grids: dict[str, Any], name: str, client: Client, *, share: bool) -> float:
    layers, positions = range(client.describe().n_layers), range(len(client.tokenize(CLEAN).token_ids))
    plans = [[patch(f"resid_pre.{i}", from_input="clean", positions=p)] for i in layers for p in positions]
    inputs = {"clean": Input(text=CLEAN, source_only=True), "corrupt": CORRUPT}
    metric, axes = _metric(client), {"layer": layers, "position": positions}
    start = time.perf_counter()
    swept = client.sweep(inputs, metric, plans, axes=axes, share=share, progress=False)
    seconds = time.perf_counter() - start
    grids[name] = swept.array().values
    return seconds


def _lens_grid(grids: dict[str, Any], lens: Child, client: Client) -> float:
    metric = _metric(client)
    ids = {name: list(client.tokenize(text).token_ids) for name, text in (("clean", CLEAN), ("corrupt", CORRUPT))}
    answer = lens.ask(**ids, correct=metric.correct[0], wrong=metric.wrong[0])
    grids[THEIRS] = np.array(answer["grid"])
    return float(answer["seconds"])


def gradients_cost(sizes: Sizes) -> list[Figure]:
    """A RelP pass over every neuron against one forward, and a neuron graph against one forward and backward."""
    with _inprocess() as client:
        metric = _metric(client)
        threshold = _threshold(client, metric, GRAPH_NODES)
        sizes_of = list[int]()

        def forward() -> float:
            read = capture("logits", positions=-1, reduce=Gather((metric.correct[0], metric.wrong[0])))
            return _seconds(lambda: client.run(CLEAN, capture=[read]))

        def nodes() -> float:
            return _seconds(
                lambda: client.gradients(CLEAN, metric, at=["mlp_act.*"], capture=["mlp_act.*"], rules=RULES)
            )

        def backward() -> float:
            last = hook("embed", capture=Capture(), positions=-1)
            return _seconds(lambda: client.gradients(CLEAN, metric, at=[last]))

        def graph() -> float:
            start = time.perf_counter()
            found = neuron_graph(
                client, CLEAN, metric=metric, threshold=threshold, max_nodes=2 * GRAPH_NODES, progress=False
            )
            sizes_of.append(sum(node.kind == "neuron" for node in found.nodes))
            return time.perf_counter() - start

        timed = {"forward": forward, "node pass": nodes, "forward and backward": backward, "graph": graph}
        samples = interleaved(timed, rounds=sizes.analysis_rounds)
    cost = compare("RelP over every neuron / one forward", samples, ("node pass", "forward"), unit="s")
    drawn = compare(
        f"graph of {sizes_of[-1]} neurons / one forward and backward",
        samples,
        ("graph", "forward and backward"),
        unit="s",
    )
    return [
        Figure(cost.name, cost.values, 4.0, at_most=True, behind=cost.behind),
        Figure(drawn.name, drawn.values, 40.0, at_most=True, behind=drawn.behind),
    ]


def _threshold(client: Client, metric: LogitDifference, n: int) -> float:
    """What share of the metric the n-th neuron's score has."""
    scored = client.gradients(CLEAN, metric, at=["mlp_act.*"], capture=["mlp_act.*"], rules=RULES)
    scores = np.abs(scored.gradients.stack("mlp_act") * scored.captures.stack("mlp_act")).ravel()
    return float(np.partition(scores, -n)[-n] / abs(scored.metric))


def _seconds(call: Any) -> float:
    """The mean of three, as one is short."""
    start = time.perf_counter()
    for _ in range(3):
        call()
    return (time.perf_counter() - start) / 3
