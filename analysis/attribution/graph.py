"""A neuron attribution graph as a plain value: what each node says to the metric, and the direct effects between nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument

__all__ = ["Graph", "GraphInfo", "Node"]

Kind = Literal["embedding", "neuron", "logit"]
KINDS: tuple[Kind, ...] = ("embedding", "neuron", "logit")
FORMAT, VERSION = "probewire.graph", 1


@dataclass(frozen=True, slots=True)
class Node:
    """A token's embedding, a neuron at a position, or a logit. Made by `embedding`, `neuron` and `logit`."""

    kind: Kind
    position: int
    """Absolute; of a logit: of the row that predicts it."""
    layer: int | None = None
    """Neurons: 0-based."""
    unit: int | None = None
    """Neurons: coordinate of `mlp_act`."""
    token: int | None = None
    """Embeddings and logits: the token's id."""
    text: str = ""
    """Embeddings and logits: the token as text. Neurons: a label, where somebody gave one."""
    score: float = 0.0
    """Contribution to the graph's metric, in its units."""
    activation: float | None = None
    """Neurons: the value of the unit. Logits: the value that all direct effects on it sum to. None for embeddings."""
    probability: float | None = None
    """Logits: of the token."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument(f"a node's kind is one of {', '.join(KINDS)}, got {self.kind!r}")
        needed = {"embedding": ("token",), "neuron": ("layer", "unit", "activation"), "logit": ("token", "probability")}
        missing = [name for name in needed[self.kind] if getattr(self, name) is None]
        if missing:
            raise InvalidArgument(f"a node of kind {self.kind} needs {' and '.join(missing)}")
        for name in ("position", "layer", "unit", "token"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InvalidArgument(f"node.{name} must be 0 or more (count positions from the start), got {value}")
        if self.probability is not None and not 0.0 <= self.probability <= 1.0:
            raise InvalidArgument(f"node.probability must be in 0 … 1, got {self.probability}")

    @classmethod
    def embedding(cls, position: int, token: int, text: str, score: float = 0.0) -> Node:
        """The embedding of one of the prompt's tokens."""
        return cls("embedding", position, token=token, text=text, score=score)

    @classmethod
    def neuron(cls, layer: int, position: int, unit: int, *, activation: float, score: float = 0.0) -> Node:
        """A unit of `mlp_act.layer` at a position."""
        return cls("neuron", position, layer, unit, score=score, activation=activation)

    @classmethod
    def logit(
        cls,
        position: int,
        token: int,
        text: str,
        *,
        probability: float,
        activation: float | None = None,
        score: float = 0.0,
    ) -> Node:
        """The logit of a token at a position."""
        return cls("logit", position, None, None, token, text, score, activation, probability)

    @property
    def name(self) -> str:
        """Short and distinct within a graph: `embed.3`, `L10.p5.n812`, `logit.6974`."""
        if self.kind == "neuron":
            return f"L{self.layer}.p{self.position}.n{self.unit}"
        return f"embed.{self.position}" if self.kind == "embedding" else f"logit.{self.token}"

    @property
    def depth(self) -> int:
        """-1 for embeddings, the layer for neurons, then logits; every source has less than its targets."""
        if self.kind == "neuron":
            return cast("int", self.layer)
        return -1 if self.kind == "embedding" else 1 << 30


@dataclass(frozen=True, slots=True)
class GraphInfo:
    """Where a graph comes from."""

    model: str
    n_layers: int
    metric: str
    """In words: "logit ' Mary' − ' John' at the last position"."""
    value: float = 0.0
    """Of the metric."""
    model_hash: str = ""
    rules: tuple[str, ...] = ()
    """Of the backward pass; empty: plain gradients."""
    node_threshold: float = 0.0
    """Neurons below this share of |metric| were left out before any pruning."""
    notes: Mapping[str, str] | None = None
    """Anything else worth keeping: dtype, backend, date."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        if self.n_layers < 1:
            raise InvalidArgument(f"graph info: n_layers must be 1 or more, got {self.n_layers}")


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in an order in which sources precede targets: embeddings, neurons by layer, logits."""

    prompt: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each prompt token as text."""
    nodes: tuple[Node, ...]
    adjacency: NDArray[np.float64]
    """[target, source], in the order of `nodes`: a_source · ∂a_target/∂a_source along paths that cross no other MLP."""
    info: GraphInfo

    def __post_init__(self) -> None:
        for name in ("token_ids", "tokens", "nodes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        adjacency = np.array(self.adjacency, dtype=np.float64)
        adjacency.flags.writeable = False
        object.__setattr__(self, "adjacency", adjacency)
        _check_nodes(self)
        _check_adjacency(self)

    @classmethod
    def sorted(
        cls,
        prompt: str,
        token_ids: Sequence[int],
        tokens: Sequence[str],
        nodes: Sequence[Node],
        adjacency: NDArray[Any],
        info: GraphInfo,
    ) -> Graph:
        """A graph from nodes in any order; `adjacency` [target, source] is in theirs and moves along."""
        order = sorted(range(len(nodes)), key=lambda index: (nodes[index].depth, nodes[index].position))
        moved = np.asarray(adjacency)[np.ix_(order, order)]
        return cls(prompt, tuple(token_ids), tuple(tokens), tuple(nodes[index] for index in order), moved, info)

    # ---- reading ----

    def indices(self, kind: Kind) -> NDArray[np.intp]:
        """Where the nodes of a kind stand in `nodes`."""
        if kind not in KINDS:
            raise InvalidArgument(f"a node's kind is one of {', '.join(KINDS)}, got {kind!r}")
        return np.flatnonzero([node.kind == kind for node in self.nodes])

    @property
    def scores(self) -> NDArray[np.float64]:
        """[node]"""
        return np.array([node.score for node in self.nodes])

    @property
    def n_edges(self) -> int:
        """Direct effects that are not 0."""
        return int(np.count_nonzero(self.adjacency))

    def label(self, index: int) -> str:
        """A node as a reader wants it: 'Mary' @3, layer 10 neuron 812 @5, logit 'Mary'."""
        node = self.nodes[index]
        if node.kind == "neuron":
            own = f" {node.text}" if node.text else ""
            return f"layer {node.layer} neuron {node.unit}{own} @{node.position}"
        return f"{node.text!r} @{node.position}" if node.kind == "embedding" else f"logit {node.text!r}"

    def flows(self) -> NDArray[np.float64]:
        """[target, source]: the part of the target's score that came through each edge, edge / a_target · score_target.

        Over every source there is (not only the graph's), a target's flows sum to its score. A target whose activation
        is 0 or unknown has none.
        """
        activations = np.array([node.activation or 0.0 for node in self.nodes])
        mean = np.abs(activations[activations != 0]).mean() if activations.any() else 0.0
        guarded = activations + np.copysign(1e-6 * mean, activations)  # a tiny activation must not explode its flows
        rate = np.divide(self.scores, guarded, out=np.zeros_like(guarded), where=activations != 0)
        return self.adjacency * rate[:, None]

    def subgraph(self, keep: NDArray[np.bool_], edges: NDArray[np.bool_] | None = None) -> Graph:
        """The nodes chosen by `keep` [node], and of the edges between them those in `edges` [target, source]."""
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != (len(self.nodes),):
            raise InvalidArgument(f"keep has shape {list(keep.shape)}; the graph has {len(self.nodes)} nodes")
        adjacency = self.adjacency if edges is None else np.where(edges, self.adjacency, 0.0)
        nodes = tuple(node for node, kept in zip(self.nodes, keep, strict=True) if kept)
        return Graph(self.prompt, self.token_ids, self.tokens, nodes, adjacency[np.ix_(keep, keep)], self.info)

    # ---- our own JSON ----

    def to_json(self) -> dict[str, Any]:
        """JSON data; edges as [target, source, weight] by index of `nodes`. No number is rounded."""
        targets, sources = np.nonzero(self.adjacency)
        edges = [[int(t), int(s), float(self.adjacency[t, s])] for t, s in zip(targets, sources, strict=True)]
        nodes = [{key: value for key, value in asdict(node).items() if value is not None} for node in self.nodes]
        return {
            "format": FORMAT,
            "version": VERSION,
            "info": asdict(self.info),
            "prompt": self.prompt,
            "token_ids": list(self.token_ids),
            "tokens": list(self.tokens),
            "nodes": nodes,
            "edges": edges,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """What `to_json` gave. Raises InvalidArgument for anything else."""
        if (data.get("format"), data.get("version")) != (FORMAT, VERSION):
            found = f"format {data.get('format')!r}, version {data.get('version')!r}"
            raise InvalidArgument(f"not a graph of ours ({FORMAT}, version {VERSION}): {found}")
        try:
            nodes = tuple(Node(**node) for node in data["nodes"])
            adjacency = np.zeros((len(nodes), len(nodes)))
            for target, source, weight in data["edges"]:
                adjacency[target, source] = weight
            info = GraphInfo(**data["info"])
            return cls(data["prompt"], tuple(data["token_ids"]), tuple(data["tokens"]), nodes, adjacency, info)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidArgument(f"a damaged graph file: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write `to_json` to a file."""
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read what `save` wrote. Raises InvalidArgument when it is something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidArgument(f"{path} is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise InvalidArgument(f"{path} holds a {type(data).__name__}, not a graph")
        return cls.from_json(cast("dict[str, Any]", data))

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.indices(kind))} {kind}s" for kind in KINDS)
        return f"Graph({self.prompt!r}: {counts}, {self.n_edges:,} edges)"


def _check_nodes(graph: Graph) -> None:
    n_tokens = len(graph.tokens)
    if len(graph.token_ids) != n_tokens:
        raise InvalidArgument(f"the graph has {len(graph.token_ids)} token ids and {n_tokens} token texts")
    if not graph.nodes:
        raise InvalidArgument("a graph needs at least one node; lower the node threshold")
    seen: set[str] = set()
    for before, node in zip((None, *graph.nodes), graph.nodes, strict=False):
        if node.position >= n_tokens:
            raise InvalidArgument(f"node {node.name} stands at position {node.position}; the prompt has {n_tokens}")
        if node.layer is not None and node.layer >= graph.info.n_layers:
            raise InvalidArgument(f"node {node.name} is in layer {node.layer} of {graph.info.n_layers}")
        if node.name in seen:
            raise InvalidArgument(f"node {node.name} is there twice")
        if before is not None and before.depth > node.depth:
            raise InvalidArgument(
                f"node {node.name} comes after {before.name}; use Graph.sorted, which puts them in order"
            )
        seen.add(node.name)


def _check_adjacency(graph: Graph) -> None:
    n = len(graph.nodes)
    if graph.adjacency.shape != (n, n):
        raise InvalidArgument(f"adjacency has shape {list(graph.adjacency.shape)}; {n} nodes need [{n}, {n}]")
    if not np.isfinite(graph.adjacency).all():
        raise InvalidArgument("adjacency holds NaN or infinity")
    depths, positions = (np.array([getattr(n, name) for n in graph.nodes]) for name in ("depth", "position"))
    later = (depths[None, :] >= depths[:, None]) | (positions[None, :] > positions[:, None])  # [target, source]
    for target, source in np.argwhere(later & (graph.adjacency != 0)).tolist():
        one, other = graph.nodes[source], graph.nodes[target]
        raise InvalidArgument(
            f"adjacency[{target}, {source}] is an edge from {one.name} to {other.name}, which comes no later in the "
            "forward pass; adjacency is [target, source]"
        )
