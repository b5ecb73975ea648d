"""Neuron attribution graphs: which neurons, tokens and logits a prompt's answer goes through, and who tells whom.

Nodes are scored by RelP with all rules; edges are direct effects (direct_effects.py). Sources: Transluce 2025
(arXiv 2601.22594), Jafari et al. 2025 (RelP), Ameisen et al. 2025 for the shape of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, capture as capture_hook, hook
from ...clients.requests.prompts import Prompt
from ...protos.errors import InvalidArgument
from ...protos.metrics import Coordinate, Logit, LogitDifference, LogProb, Metric, TopLogits, WeightedSum
from ...protos.model import Tokenized
from ...protos.spec import Capture
from .direct_effects import DirectEffects, Neuron, direct_effects
from .graph import Graph, GraphInfo, Node
from .relp import GRAPH_RULES
from .taylor import check_gradients

__all__ = ["neuron_graph"]

Floats = NDArray[np.float64]


def neuron_graph(
    client: Client,
    prompt: Prompt,
    *,
    metric: Metric | None = None,
    threshold: float = 0.005,
    max_nodes: int = 500,
    max_logits: int = 10,
    logit_mass: float = 0.95,
    rules: Sequence[str] = GRAPH_RULES,
    progress: bool = True,
    model: str = "",
) -> Graph:
    """The graph of one prompt: neurons with |RelP| ≥ threshold · |metric|, every token's embedding, the likeliest logits.

    `metric` scores the nodes; default TopLogits(5), and TopLogits(5, centred=True) takes the row's mean off. Logits: the
    likeliest tokens at its position that together reach `logit_mass`, at most `max_logits`; edges into them are of the
    logit minus the row's mean. A neuron's cost is one forward and backward of the prompt. Raises InvalidArgument when
    more than `max_nodes` neurons pass the threshold, when none does, and for a metric that is not of the logits.
    """
    metric = TopLogits(5) if metric is None else metric
    info, item = client.describe(model), client.tokenize(prompt, model=model)
    position = _position(metric, len(item.token_ids))
    check_gradients(info, ("embed", "mlp_act.0", "logits"))
    scored = _score(client, item, metric, position, rules, model)
    neurons = _choose(scored, threshold, max_nodes)
    logits = _likeliest(scored.logits, max_logits, logit_mass)
    targets: list[Metric] = [Coordinate(f"mlp_act.{layer}", at, unit) for layer, at, unit in neurons]
    targets += [Logit(token, position, centred=True) for token, _ in logits]
    effects = direct_effects(client, item.token_ids, targets, neurons, rules=rules, progress=progress, model=model)
    nodes = [
        *_embedding_nodes(item, scored),
        *_neuron_nodes(neurons, scored),
        *_logit_nodes(client, position, logits, effects.values[len(neurons) :], scored, model),
    ]
    origin = GraphInfo(
        model=info.id,
        n_layers=info.n_layers,
        metric=_in_words(client, metric, model),
        value=scored.value,
        model_hash=info.model_hash,
        rules=tuple(rules),
        node_threshold=threshold,
        notes={"dtype": info.dtype, "backend": info.backend},
    )
    adjacency = _adjacency(len(item.token_ids), len(neurons), effects)
    return Graph.sorted(item.text, item.token_ids, item.tokens, nodes, adjacency, origin)


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """One pass over every node."""

    value: float
    """Of the metric."""
    neurons: Floats
    """RelP: [layer, position, unit]."""
    activations: Floats
    embeddings: Floats
    """RelP: [position]."""
    logits: Floats
    """[vocab], at the metric's position."""
    logit_scores: Floats
    """[vocab]: logit · ∂m/∂logit."""


def _score(client: Client, item: Tokenized, metric: Metric, position: int, rules: Sequence[str], model: str) -> _Scored:
    gradient = Capture(gradient=True)
    found = client.gradients(
        Input(token_ids=item.token_ids),
        metric,
        at=[
            hook("embed", None, gradient),
            hook("mlp_act.*", None, gradient),
            hook("logits", None, gradient, positions=position),
        ],
        capture=["embed", "mlp_act.*", capture_hook("logits", positions=position)],
        rules=tuple(rules),
        model=model,
    )
    [one] = found.inputs.values()
    values, gradients = one.captures, one.gradients
    activations = np.asarray(values.stack("mlp_act"), dtype=np.float64)
    logits = np.asarray(values["logits"], dtype=np.float64)[0]
    return _Scored(
        float(one.metric),
        activations * gradients.stack("mlp_act"),
        activations,
        (np.asarray(values["embed"], dtype=np.float64) * gradients["embed"]).sum(axis=-1),
        logits,
        logits * np.asarray(gradients["logits"], dtype=np.float64)[0],
    )


def _choose(scored: _Scored, threshold: float, max_nodes: int) -> list[Neuron]:
    """Neurons that pass the threshold, in forward order."""
    if not threshold > 0:
        raise InvalidArgument(f"threshold must be above 0 (a share of the metric), got {threshold}")
    if scored.value == 0:
        raise InvalidArgument(
            "the metric is 0 on this prompt, so no share of it can be a threshold; choose another metric"
        )
    shares = np.abs(scored.neurons) / abs(scored.value)
    n_found, largest = int((shares >= threshold).sum()), np.sort(shares, axis=None)[::-1]
    if n_found > max_nodes:
        enough = largest[max_nodes - 1] if max_nodes else largest[0] * 2
        raise InvalidArgument(
            f"{n_found} neurons pass the threshold {threshold:g}, and max_nodes is {max_nodes}; raise the threshold "
            f"(about {enough:.2g} lets {max_nodes} pass), or max_nodes: each costs one forward and backward"
        )
    if not n_found:
        raise InvalidArgument(f"no neuron passes the threshold {threshold:g}; the largest share is {largest[0]:.2g}")
    return [(int(a), int(b), int(c)) for a, b, c in np.argwhere(shares >= threshold)]


def _likeliest(logits: Floats, max_logits: int, mass: float) -> list[tuple[int, float]]:
    """(token, probability), likeliest first."""
    if max_logits < 1 or not 0 < mass <= 1:
        raise InvalidArgument(f"max_logits must be 1 or more and logit_mass in 0 … 1, got {max_logits} and {mass}")
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")[:max_logits]
    needed = int(np.searchsorted(np.cumsum(probabilities[order]), mass)) + 1
    return [(int(token), float(probabilities[token])) for token in order[:needed]]


# ---- nodes ----


def _embedding_nodes(item: Tokenized, scored: _Scored) -> list[Node]:
    return [
        Node.embedding(position, token, text, float(scored.embeddings[position]))
        for position, (token, text) in enumerate(zip(item.token_ids, item.tokens, strict=True))
    ]


def _neuron_nodes(neurons: Sequence[Neuron], scored: _Scored) -> list[Node]:
    return [
        Node.neuron(*neuron, activation=float(scored.activations[neuron]), score=float(scored.neurons[neuron]))
        for neuron in neurons
    ]


def _logit_nodes(
    client: Client,
    position: int,
    logits: Sequence[tuple[int, float]],
    values: Floats,
    scored: _Scored,
    model: str,
) -> list[Node]:
    nodes: list[Node] = []
    for (token, probability), value in zip(logits, values, strict=True):
        [text] = client.tokenize([token], model=model).tokens
        score = float(scored.logit_scores[token])
        nodes.append(Node.logit(position, token, text, probability=probability, activation=float(value), score=score))
    return nodes


def _adjacency(n_tokens: int, n_neurons: int, effects: DirectEffects) -> Floats:
    """[target, source], in the order embeddings, neurons, logits."""
    n = n_tokens + len(effects.values)
    adjacency = np.zeros((n, n))
    adjacency[n_tokens:, :n_tokens] = effects.embeddings
    adjacency[n_tokens:, n_tokens : n_tokens + n_neurons] = effects.neurons
    return adjacency


# ---- the metric ----


def _position(metric: Metric, n_tokens: int) -> int:
    if isinstance(metric, Coordinate):
        raise InvalidArgument(
            "a neuron graph explains logits; give a metric of them, such as TopLogits(5) or Logit(token)"
        )
    if isinstance(metric, WeightedSum):
        found = {_position(part, n_tokens) for part in metric.metrics}
        if len(found) > 1:
            raise InvalidArgument(f"a neuron graph explains one row of logits; the sum reads those of {sorted(found)}")
        return found.pop()
    position = metric.position + n_tokens if metric.position < 0 else metric.position
    if not 0 <= position < n_tokens:
        raise InvalidArgument(
            f"the metric's position {metric.position} is outside the prompt, which has {n_tokens} tokens"
        )
    return position


def _in_words(client: Client, metric: Metric, model: str) -> str:
    def words(*tokens: int) -> str:
        return ", ".join(repr(text) for text in client.tokenize(list(tokens), model=model).tokens)

    where = f"at position {getattr(metric, 'position', -1)}"
    if isinstance(metric, WeightedSum):
        parts = [_in_words(client, part, model) for part in metric.metrics]
        return " + ".join(f"{weight:g} · {part}" for weight, part in zip(metric.weights, parts, strict=True))
    if isinstance(metric, TopLogits):
        return f"sum of the {metric.k} largest{' centred' if metric.centred else ''} logits {where}"
    if isinstance(metric, Logit):
        return f"{'centred ' if metric.centred else ''}logit {words(*metric.ids)} {where}"
    if isinstance(metric, LogitDifference):
        return f"logit {words(*metric.correct)} minus {words(*metric.wrong)} {where}"
    if isinstance(metric, LogProb):
        return f"log-probability of {words(*metric.ids)} {where}"
    return f"{type(metric).__name__} {where}"
