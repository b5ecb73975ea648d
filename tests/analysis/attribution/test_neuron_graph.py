"""Neuron graphs: which nodes are in, what their edges are, and that a graph on the default model makes sense."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.direct_effects import direct_effects
from probewire.analysis.attribution.neuron_graph import neuron_graph
from probewire.analysis.attribution.relp import relp
from probewire.clients import Client, Coordinate, InvalidArgument, Logit, LogitDifference, TopLogits, WeightedSum

PROMPT = "abcdefgh"


def test_nodes_are_those_above_the_threshold(tiny: Client) -> None:
    graph = neuron_graph(tiny, PROMPT, threshold=0.02)
    scores = relp(tiny, PROMPT, "mlp_act", TopLogits(5), units=True).mean.values
    metric = relp(tiny, PROMPT, "embed", TopLogits(5), positions="all").mean.item()
    expected = {tuple(found) for found in np.argwhere(np.abs(scores) >= 0.02 * abs(metric)).tolist()}
    neurons = [node for node in graph.nodes if node.kind == "neuron"]
    assert {(n.layer, n.position, n.unit) for n in neurons} == expected
    assert all(n.score == pytest.approx(scores[n.layer, n.position, n.unit], rel=1e-6) for n in neurons)
    assert graph.info.value == pytest.approx(metric, rel=1e-10)
    embeddings = [node.score for node in graph.nodes if node.kind == "embedding"]
    assert sum(embeddings) == pytest.approx(metric, rel=1e-10)
    assert len(embeddings) == len(graph.tokens) == 9


def test_edges_are_direct_effects(tiny: Client) -> None:
    graph = neuron_graph(tiny, PROMPT, threshold=0.02, metric=Logit(70))
    neurons = [node for node in graph.nodes if node.kind == "neuron"]
    sources = [(n.layer, n.position, n.unit) for n in neurons]
    targets = [Coordinate(f"mlp_act.{n.layer}", n.position, n.unit) for n in neurons]
    targets += [Logit(n.token, 8, centred=True) for n in graph.nodes if n.kind == "logit"]
    found = direct_effects(tiny, graph.token_ids, targets, sources, complete=True)
    n_tokens, n_neurons = len(graph.tokens), len(neurons)
    assert graph.adjacency[n_tokens:, :n_tokens] == pytest.approx(found.embeddings, abs=1e-6)
    assert graph.adjacency[n_tokens:, n_tokens : n_tokens + n_neurons] == pytest.approx(found.neurons, abs=1e-6)
    assert not graph.adjacency[:n_tokens].any()
    assert not graph.adjacency[:, n_tokens + n_neurons :].any()


def test_logits_are_the_likeliest_that_reach_the_mass(tiny: Client) -> None:
    logits = tiny.run(PROMPT, capture="logits")["logits"][-1]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    ranked = np.sort(probabilities)[::-1]
    for mass, most in [(0.2, 10), (0.95, 4)]:
        graph = neuron_graph(tiny, PROMPT, threshold=0.03, logit_mass=mass, max_logits=most)
        found = [node for node in graph.nodes if node.kind == "logit"]
        expected = min(most, int((ranked.cumsum() < mass).sum()) + 1)
        assert [node.probability for node in found] == pytest.approx(ranked[:expected].tolist(), rel=1e-9)
        assert [node.activation for node in found] == pytest.approx(
            [logits[node.token] - logits.mean() for node in found], rel=1e-9
        )
    plain = neuron_graph(tiny, PROMPT, threshold=0.03, max_logits=5, logit_mass=1.0)
    assert sum(node.score for node in plain.nodes if node.kind == "logit") == pytest.approx(plain.info.value, rel=1e-9)


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(
        InvalidArgument, match=r"neurons pass the threshold 0.001, and max_nodes is 20; raise the threshold"
    ):
        neuron_graph(tiny, PROMPT, threshold=0.001, max_nodes=20)
    with pytest.raises(InvalidArgument, match="no neuron passes the threshold 100"):
        neuron_graph(tiny, PROMPT, threshold=100)
    with pytest.raises(InvalidArgument, match="threshold must be above 0"):
        neuron_graph(tiny, PROMPT, threshold=0)
    with pytest.raises(InvalidArgument, match="explains logits"):
        neuron_graph(tiny, PROMPT, metric=Coordinate("mlp_act.0", 1, 1))
    with pytest.raises(InvalidArgument, match="outside the vocabulary"):
        neuron_graph(tiny, PROMPT, metric=Logit(9999))
    with pytest.raises(InvalidArgument, match="position 9 is outside the prompt"):
        neuron_graph(tiny, PROMPT, metric=Logit(70, position=9))
    with pytest.raises(InvalidArgument, match=r"explains one row of logits; the sum reads those of \[3, 8\]"):
        neuron_graph(tiny, PROMPT, metric=WeightedSum((Logit(70), Logit(71, 3))))


def test_a_sum_of_metrics_is_explained(tiny: Client) -> None:
    summed = WeightedSum((Logit(70), Logit(tokens=(71, 72))), (1.0, -1.0))
    found = neuron_graph(tiny, PROMPT, threshold=0.05, metric=summed)
    same = neuron_graph(tiny, PROMPT, threshold=0.05, metric=LogitDifference((70,), (71, 72)))
    assert found.adjacency == pytest.approx(same.adjacency, abs=1e-9)
    assert found.info.metric == "1 · logit 'g' at position -1 + -1 · logit 'h', 'i' at position -1"


def test_the_threshold_that_the_error_names_lets_enough_pass(tiny: Client) -> None:
    with pytest.raises(InvalidArgument) as error:
        neuron_graph(tiny, PROMPT, threshold=0.001, max_nodes=20)
    named = float(str(error.value).split("(about ")[1].split(" ")[0])
    assert 15 <= sum(n.kind == "neuron" for n in neuron_graph(tiny, PROMPT, threshold=named, max_nodes=25).nodes) <= 25


def test_a_graph_of_the_default_model(default_client: Client) -> None:
    """Conservation in float32, and a graph whose answer owes to the subject."""
    mary, john = (default_client.token(name) for name in (" Mary", " John"))
    prompt = "When Mary and John went to the store, John gave a drink to"
    graph = neuron_graph(default_client, prompt, metric=LogitDifference((mary,), (john,)), threshold=0.03)
    kinds = [node.kind for node in graph.nodes]
    assert 10 <= kinds.count("neuron") <= 200
    logits = [node for node in graph.nodes if node.kind == "logit"]
    assert logits[0].text == " Mary"
    assert logits[0].probability == pytest.approx(0.92, abs=0.02)
    embeddings = [node for node in graph.nodes if node.kind == "embedding"]
    assert sum(node.score for node in embeddings) == pytest.approx(graph.info.value, rel=1e-3)
    assert max(embeddings, key=lambda node: node.score).text == " Mary"
