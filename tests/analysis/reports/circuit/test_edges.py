"""Checks of a circuit of edges: on a model whose one neuron reads the embedding and writes the answer, the truth is known."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probewire.analysis.circuits import Circuit, Claim, Origin, edge_circuits, judge
from probewire.analysis.reports.circuit import QaReport, SafetyProbe, circuit_qa, qa_page, task_card
from probewire.analysis.tasks import fit
from probewire.clients import Client, InvalidArgument, LogitDifference
from tests.analysis.ablation.planted import LAYER, client_of
from tests.analysis.pages import data_of, is_javascript
from tests.analysis.reports.circuit.conftest import FOUND_ON, TASK

TRUE = (("embed", f"mlp_resid.{LAYER}"), (f"mlp_out.{LAYER}", f"resid_post.{LAYER}"), ("embed", f"resid_post.{LAYER}"))
"""The neuron reads the last letter, and writes the answer; the letter itself has logits too."""
WRITES = " → ".join(TRUE[1])


@pytest.fixture(scope="module")
def planted_client(planted_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The planted model with attention all but off, so that three edges are all there is."""
    folder = tmp_path_factory.mktemp("edges") / "planted"
    shutil.copytree(planted_folder, folder)
    weights = {name: weight.copy() for name, weight in load_file(folder / "model.safetensors").items()}
    for name, weight in weights.items():
        if name.endswith("o_proj.weight"):
            weight *= 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with client_of(folder) as client:
        yield client


def of_edges(client: Client, *edges: tuple[str, str], claims: tuple[Claim, ...] = ()) -> Circuit:
    info = client.describe()
    task = fit(TASK.where(**FOUND_ON), client, 4)
    model = edge_circuits(client, task.clean, task.corrupt, task.metrics)
    mask, scores = np.zeros(model.space.shape, dtype=bool), np.zeros(model.space.shape)
    for rank, (sender, receiver) in enumerate(edges):
        at = model.space.senders.index(sender), model.space.receivers.index(receiver)
        mask[at], scores[at] = True, 1.0 / (1 + rank)
    origin = Origin(model=info.id, model_hash=info.model_hash, task="planted", method="planted")
    circuit = judge(model, Circuit.of_edges(model.space, mask, scores, origin))
    return circuit.with_card(name="edges", task=task_card(task), claims=claims)


@pytest.fixture(scope="module")
def report(planted_client: Client) -> QaReport:
    claims = (Claim(WRITES, "writes the answer", "necessity", 0.5),)
    probe = SafetyProbe(["abc", "hello"], LogitDifference((100,), (101,)))
    circuit = of_edges(planted_client, *TRUE, claims=claims)
    options: dict[str, Any] = {
        "task": TASK,
        "found_on": FOUND_ON,
        "n": 8,
        "seeds": 2,
        "safety_sets": {"letters": probe},
    }
    return circuit_qa(planted_client, circuit, **options)


def found(report: QaReport, words: str) -> Any:
    [check] = [check for part in report.checks.values() for check in part if words in check.name]
    return check


def test_true_edges_are_found_true(planted_client: Client, report: QaReport) -> None:
    assert report.verdict("reproduced") == report.verdict("functional") == "pass"
    assert found(report, "faithfulness of the file").figure.value == pytest.approx(0.0, abs=1e-5)
    assert found(report, "held-out").figure.value == pytest.approx(1.0, abs=0.2)
    assert found(report, "of as many edges").figure.value == pytest.approx(1 / 21)
    assert found(report, "another template").verdict == "pass"
    assert found(report, "edges matter alike").figure.n == len(TRUE), "patch and mean are two ablations"
    assert found(report, "writes the answer").figure.value > 0.5
    assert found(report, "edges that are needed").figure.n == len(TRUE)
    assert found(report, "found again").note.startswith("Jaccard of 2 sets of prompts, ranked by EAP")
    assert len(report.facts["safety"]["letters"]["random"]) == 20
    performance = report.facts["performance"]
    assert (performance["units"], performance["of"], performance["hooks"]) == (len(TRUE), 28, None)
    assert report.level >= 2
    assert not report.untested["robust"], "every check of level 3 can be made of edges"


def test_other_edges_are_no_circuit(planted_client: Client) -> None:
    wrong = of_edges(planted_client, ("attn_out.0", "mlp_resid.1"), ("embed", "attn_resid.1"))
    checked = circuit_qa(planted_client, wrong, task=TASK, found_on=FOUND_ON, n=4, seeds=2)
    assert checked.verdict("reproduced") == "pass", "its file says how little it does"
    assert found(checked, "held-out").verdict == "fail"
    assert (checked.level, checked.exit_code(2)) == (1, 1)
    lying = circuit_qa(planted_client, wrong.with_origin(faithfulness=0.9), task=TASK, found_on=FOUND_ON, n=4, seeds=2)
    assert (lying.level, lying.exit_code(1)) == (0, 1)


def test_level_4_of_edges(report: QaReport) -> None:
    good = {part: tuple(replace(check, verdict="pass") for check in own) for part, own in report.checks.items()}
    third = replace(report, checks=good, untested={})
    assert third.level == 3
    assert replace(third, confirmed_by=("a on mlx, now",)).level == 4


def test_the_page_shows_edges(planted_client: Client, report: QaReport, tmp_path: Path) -> None:
    page = qa_page(report, circuit=of_edges(planted_client, *TRUE))
    is_javascript(page, tmp_path)
    assert [name for name, _ in data_of(page)["units"]] == [" → ".join(edge) for edge in TRUE]


def test_what_edges_are_not_judged_by(planted_client: Client) -> None:
    circuit = of_edges(planted_client, *TRUE)
    with pytest.raises(InvalidArgument, match="zero and reference= are of units"):
        circuit_qa(planted_client, circuit, task=TASK, found_on=FOUND_ON, ablation="zero")
    heads = replace(circuit, edges=(replace(circuit.edges[0], receiver="resid_post.0"), *circuit.edges[1:]))
    with pytest.raises(InvalidArgument, match="is no edge between these"):
        circuit_qa(planted_client, heads, task=TASK, found_on=FOUND_ON, n=4)
