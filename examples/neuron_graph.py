"""Through which neurons an answer goes: a neuron attribution graph, pruned, as a page and as JSON for Neuronpedia's viewer.

Nodes are neurons whose RelP score is at least 1 % of the metric, the prompt's tokens, and the likeliest next tokens. An edge
is a direct effect, one that passes no other MLP. All of a target's edges come from one backward pass.

    python examples/neuron_graph.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.attribution import Graph, graph_page, neuron_graph, prune, save_neuronpedia
from probewire.analysis.plots import score_bars
from probewire.clients import LogitDifference

OUTPUT = Path(__file__).parent / "output"
TEXT = "When Mary and John went to the store, John gave a drink to"


def main() -> None:
    """The graph, what is strongest in it, and its two files."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        model = client.describe(args.model).id
        metric = LogitDifference((client.token(" Mary", model=model),), (client.token(" John", model=model),))
        graph = neuron_graph(client, TEXT, metric=metric, threshold=0.01, model=model)
    print(graph)
    total = sum(node.score for node in graph.nodes if node.kind == "embedding")
    print(f"the metric is {graph.info.value:+.3f}, and what all tokens say to it sums to {total:+.3f}")
    strongest(graph)
    pruned = prune(graph)
    print(f"\npruned to 80 % of the influence on nodes and 98 % on edges: {pruned.graph}")
    title = "Who gets the drink?"
    graph_page(pruned, OUTPUT / "neuron_graph.html", title=title)
    save_neuronpedia(pruned, OUTPUT / "neuron_graph.json", slug="ioi")
    print(f"page: {OUTPUT / 'neuron_graph.html'} (open it in a browser; it needs no network)")
    print(f"for Neuronpedia's viewer: {OUTPUT / 'neuron_graph.json'}")
    bars(graph, model)
    print(f"plot: {OUTPUT / 'neuron_graph.png'}")


def strongest(graph: Graph) -> None:
    """The neurons with the highest scores, and who says most to each."""
    neurons = [int(index) for index in graph.indices("neuron")]
    print("\nneurons that say most to the metric, and who says most to them:")
    for target in sorted(neurons, key=lambda index: -abs(graph.nodes[index].score))[:6]:
        source = int(np.abs(graph.adjacency[target]).argmax())
        share = graph.adjacency[target, source] / (graph.nodes[target].activation or 1.0)
        print(f"  {graph.label(target):<32} {graph.scores[target]:+.2f}   {share:4.0%} from {graph.label(source)}")


def bars(graph: Graph, model: str) -> None:
    """What each token says to the answer."""
    tokens = graph.indices("embedding")
    score_bars(
        [graph.label(index) for index in tokens],
        graph.scores[tokens],
        ordered=False,
        what="What each word says to the answer",
        how=f"{model}: RelP of the tokens' embeddings; they sum to logit(Mary) − logit(John)",
        label="logits",
        path=OUTPUT / "neuron_graph.png",
    )


if __name__ == "__main__":
    main()
