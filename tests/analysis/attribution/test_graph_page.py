"""The page: what it carries, that it asks the network for nothing, and (in a browser, where there is one) how it acts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.graph import Graph
from probewire.analysis.attribution.graph_page import graph_page
from probewire.analysis.attribution.influence import cumulative, edge_influence, node_influence, prune
from tests.analysis.attribution.graphs import paper_graph, random_graph
from tests.analysis.pages import Parsed, acted, asks_the_network_for_nothing, data_of, in_a_browser, is_javascript


def hostile(graph: Graph) -> Graph:
    """The same graph with markup and template marks for tokens."""
    texts = ["</script><script>alert(1)</script>", "<!-- {{data}}", "&amp; {{title}}", '"\n\u2028']
    nodes = [replace(n, text=texts[0]) if n.kind == "logit" else n for n in graph.nodes]
    return Graph("<b>{{style}}</b>", graph.token_ids, texts, nodes, graph.adjacency, replace(graph.info, model="<i>"))


def test_it_carries_the_graph() -> None:
    graph = random_graph(1)
    data = data_of(graph_page(graph))
    assert data["tokens"] == list(graph.tokens)
    assert [node["name"] for node in data["nodes"]] == [node.name for node in graph.nodes]
    assert [n["cumulative"] for n in data["nodes"]] == pytest.approx(cumulative(node_influence(graph)), abs=1e-5)
    adjacency, flows = np.zeros_like(graph.adjacency), np.zeros_like(graph.adjacency)
    for source, target, weight, flow, _, _ in data["links"]:
        adjacency[target, source], flows[target, source] = weight, flow
    assert adjacency == pytest.approx(graph.adjacency, rel=1e-5)
    assert flows == pytest.approx(graph.flows(), rel=1e-5)


def test_links_come_most_influential_first() -> None:
    graph = random_graph(1)
    rows = data_of(graph_page(graph))["links"]
    influence = edge_influence(graph)
    ranked = [influence[int(row[1]), int(row[0])] for row in rows]
    assert ranked == sorted(ranked, reverse=True)
    assert rows[0][5] == pytest.approx(influence.max() / influence.sum(), abs=1e-5)
    shares = np.zeros(len(graph))
    for row in rows:
        shares[row[1]] += row[4]
    assert shares[shares > 0] == pytest.approx(1.0, abs=1e-4)


def test_a_crowd_of_links_begins_thinned_out() -> None:
    data = data_of(graph_page(random_graph(0, n_neurons=150, density=0.6)))
    assert len(data["links"]) > 2000
    assert sum(row[5] <= data["link_threshold"] for row in data["links"]) <= 400
    assert data_of(graph_page(paper_graph()))["link_threshold"] == 0.98


def test_a_pruned_graph_shows_all_its_nodes() -> None:
    pruned = prune(random_graph(1))
    data = data_of(graph_page(pruned))
    assert data["node_threshold"] == 1.0
    assert [n["cumulative"] for n in data["nodes"]] == pytest.approx(pruned.kept.tolist(), abs=1e-5)


def test_nothing_in_the_data_becomes_markup() -> None:
    page = graph_page(hostile(paper_graph()), title="<u>{{script}}")
    parsed = Parsed(page)
    assert len(parsed.scripts) == 2
    assert json.loads(parsed.scripts[0])["tokens"][0] == "</script><script>alert(1)</script>"
    assert "<u>" not in page
    assert "&lt;u&gt;{{script}}</title>" in page


def test_it_asks_the_network_for_nothing() -> None:
    asks_the_network_for_nothing(graph_page(paper_graph()))


def test_the_script_is_javascript(tmp_path: Path) -> None:
    is_javascript(graph_page(paper_graph()), tmp_path)


ACT = r"""
window.addEventListener("load", () => {
  const out = {}, $ = (id) => document.getElementById(id);
  const shapes = () => [...document.querySelectorAll("#graph .node")];
  const named = (start) => shapes().find((shape) => shape.getAttribute("aria-label").startsWith(start));
  const drawn = () => document.querySelectorAll("#graph .link").length;
  const lit = () => [...document.querySelectorAll("#graph .link")].filter((l) => l.getAttribute("stroke-opacity") > 0.5).length;
  const slide = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input")); };
  out.title = $("title").textContent;
  out.prompt = $("prompt").textContent;
  out.about = $("about").textContent;
  slide("nodes", 1); slide("links", 1);
  out.all = [shapes().length, drawn()];
  slide("links", 0); out.noLinks = drawn(); slide("links", 1);
  slide("nodes", 0); out.noNeurons = shapes().length; slide("nodes", 1);
  const neuron = named("L2 · neuron 5");
  neuron.dispatchEvent(new PointerEvent("pointerenter"));
  out.hover = [$("details").textContent, lit(), document.querySelectorAll("#graph .near").length];
  neuron.dispatchEvent(new PointerEvent("pointerleave"));
  out.left = [lit(), document.querySelectorAll("#graph .near").length];
  neuron.dispatchEvent(new MouseEvent("click"));
  out.pinned = [...document.querySelectorAll("#pinned .card")].map((card) => card.querySelector(".name").textContent);
  out.rows = [...document.querySelectorAll("#pinned tr")].map((row) => row.textContent);
  out.hash = decodeURIComponent(location.hash);
  $("find").value = "mary"; $("find").dispatchEvent(new Event("input"));
  out.found = [$("found").textContent, document.querySelectorAll("#graph .match").length];
  $("find").value = "layer 2"; $("find").dispatchEvent(new Event("input"));
  out.layer = document.querySelectorAll("#graph .match").length;
  $("measure").value = "flow"; $("measure").dispatchEvent(new Event("change"));
  $("clear").click();
  out.cleared = document.querySelectorAll("#pinned .card").length;
  named("L0").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  out.byKey = document.querySelectorAll("#pinned .card").length;
  const pre = document.createElement("pre"); pre.id = "out"; pre.textContent = JSON.stringify(out);
  document.body.appendChild(pre);
});
"""


@in_a_browser
def test_in_a_browser(tmp_path: Path) -> None:
    seen = acted(graph_page(paper_graph(), title="A <graph>"), ACT, tmp_path)
    assert seen["title"] == "A <graph>"
    assert seen["prompt"] == "When Mary and John"
    assert "logit ' Mary' at the end = +5.00" in seen["about"]
    assert seen["all"] == [7, 7]
    assert seen["noLinks"] == 0
    assert seen["noNeurons"] == 4
    said, lit, near = seen["hover"]
    assert "L2 · neuron 5" in said
    assert "activation −4.00" in said
    assert "2 inputs, 1 outputs" in said
    assert (lit, near) == (3, 3)
    assert seen["left"] == [0, 0]
    assert seen["pinned"] == ["L2 · neuron 5"]
    assert seen["rows"] == ["L0 · neuron 7 @1−3.00", "‘·Mary’ @1−1.00", "→ ‘·Mary’ @3+6.00"]
    assert "pin=L2.p3.n5" in seen["hash"]
    assert seen["found"] == ["2 found", 2]
    assert seen["layer"] == 2
    assert seen["cleared"] == 0
    assert seen["byKey"] == 1


@in_a_browser
def test_hostile_tokens_in_a_browser(tmp_path: Path) -> None:
    seen = acted(graph_page(hostile(paper_graph())), ACT, tmp_path)
    assert seen["prompt"] == "<b>{{style}}</b>"
    assert seen["all"] == [7, 7]
