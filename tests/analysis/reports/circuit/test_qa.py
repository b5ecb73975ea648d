"""Checks of a circuit that is known to be one, and of files that lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.circuits import Circuit, Claim, interference
from probewire.analysis.reports.circuit import QaReport, SafetyProbe, circuit_qa, qa_page
from probewire.analysis.reports.circuit.report import Untested
from probewire.analysis.tasks import fit
from probewire.clients import Client, InvalidArgument, LogitDifference
from tests.analysis.ablation.planted import LAYER, NEURON
from tests.analysis.pages import asks_the_network_for_nothing, data_of, is_javascript
from tests.analysis.reports.circuit.conftest import FOUND_ON, TASK, of_neurons


def checked(client: Client, circuit: Circuit, **options: Any) -> QaReport:
    return circuit_qa(client, circuit, **{"task": TASK, "found_on": FOUND_ON, "n": 8, "seeds": 2, **options})


@pytest.fixture(scope="module")
def report(planted_client: Client, true_circuit: Circuit) -> QaReport:
    probe = SafetyProbe(["abc", "hello"], LogitDifference((100,), (101,)))
    return checked(planted_client, true_circuit, safety_sets={"an unrelated pair of letters": probe})


def found(report: QaReport, words: str) -> Any:
    [check] = [check for part in report.checks.values() for check in part if words in check.name]
    return check


def test_a_planted_circuit_does_what_its_file_says(report: QaReport) -> None:
    assert report.verdict("reproduced") == report.verdict("functional") == "pass"
    assert report.level == 2
    assert found(report, "faithfulness of the file").figure.value == pytest.approx(0.0, abs=1e-6)
    assert found(report, "held-out").figure.value == pytest.approx(1.0, abs=0.2)
    assert found(report, "by site").figure.value == pytest.approx(1 / 21)
    assert found(report, "another template").verdict == "pass"
    assert found(report, "edges").figure.value == 1.0
    assert found(report, "says the answer").figure.value > 0.5
    assert found(report, "found again").figure.value == 1.0, "AtP finds the neuron on any prompts"
    assert report.facts["performance"]["units"] == 1
    context = report.facts["contexts"][f"mlp_act.{LAYER} #{NEURON}"][0]
    assert context[2] == "x", "it is strongest at the cue"


def test_what_was_not_tested_keeps_a_level_from_being_reached(report: QaReport) -> None:
    [lost] = report.untested["robust"]
    assert lost.name == "its units matter alike under two ablations", "one unit has no ranks"
    assert report.verdict("robust") == report.reaches(3) == "inconclusive"
    safe = replace(report, checks={**report.checks, "safety": ()})
    assert (safe.exit_code(2), safe.exit_code(3), safe.exit_code(3, allow_inconclusive=True)) == (0, 3, 0)
    assert "not tested" in repr(report)


def test_what_changes_more_than_without_random_neurons_is_a_fail_at_every_level(report: QaReport) -> None:
    """The neuron dwarfs the rest of this model, so that it moves any pair of letters."""
    found = report.facts["safety"]["an unrelated pair of letters"]
    assert len(found["random"]) == 20
    assert abs(found["change"]) > max(abs(one) for one in found["random"])
    assert report.verdict("safety") == "fail"
    assert report.exit_code(1) == 1


def test_other_neurons_are_no_circuit(planted_client: Client) -> None:
    wrong = checked(planted_client, of_neurons(planted_client, (LAYER, NEURON + 1), (0, 3), (1, 5)))
    assert wrong.verdict("reproduced") == "pass", "its file says how little it does"
    assert found(wrong, "held-out").verdict == "fail"
    assert found(wrong, "the rest").verdict == "fail", "the planted neuron is in the rest"
    assert (wrong.level, wrong.exit_code(2)) == (1, 1)
    assert [one.name for one in wrong.untested["interpretability"]] == ["claims"]


def test_files_that_lie(planted_client: Client, true_circuit: Circuit) -> None:
    lying = checked(planted_client, true_circuit.with_origin(faithfulness=0.4))
    assert found(lying, "faithfulness of the file").verdict == "fail"
    assert (lying.level, lying.exit_code(1)) == (0, 1)
    silent = checked(planted_client, true_circuit.with_origin(faithfulness=None, completeness=None))
    assert silent.verdict("reproduced") == "inconclusive"
    assert (silent.level, silent.exit_code(1)) == (0, 3)
    other_prompts = true_circuit.with_card(task={"name": "planted", "hash": "other", "n": 4, "seed": 0})
    unknown = checked(planted_client, other_prompts)
    assert "its prompts are not known" in found(unknown, "faithfulness of the file").note
    claims = (
        Claim("z.0 head 1", "induction", "induction", 0.99),
        Claim(f"mlp_act.{LAYER} #{NEURON}", "moves names", "name_mover", 0.3),
        Claim("mlp_act.0 #1", "is needed", "necessity", 0.1),
        Claim("z.0 head 0", "sings", "song", 0.1),
    )
    claimed = checked(planted_client, true_circuit.with_card(claims=claims))
    assert found(claimed, "z.0 head 1: induction").verdict == "fail"
    whys = [one.why for one in claimed.untested["interpretability"]]
    assert "is no head" in whys[0]
    assert whys[1] == "mlp_act.0 #1 is not in the circuit"
    assert whys[2].startswith("measure 'song' is not one of previous_token")


def test_level_4_takes_another_backend_or_another_user(
    report: QaReport, planted_client: Client, true_circuit: Circuit
) -> None:
    third = replace(report, untested={}, checks={**report.checks, "robust": report.checks["robust"][:1]})
    assert third.level == 3
    elsewhere = {"level": 3, "backend": "mlx", "time": "now", "who": "a"}
    for entries, who, n in (
        ([elsewhere], "", 1),
        ([{**elsewhere, "level": 2}], "", 0),
        ([{**elsewhere, "backend": "torch"}], "", 0),
        ([{**elsewhere, "backend": "torch"}], "b", 1),
        ([{**elsewhere, "backend": "torch"}], "a", 0),
    ):
        again = checked(planted_client, true_circuit.with_card(validation=tuple(entries)), who=who, n=4)
        assert len(again.confirmed_by) == n
    assert replace(third, confirmed_by=("a on mlx, now",)).level == 4


def test_the_json_the_entry_and_the_page(
    report: QaReport, true_circuit: Circuit, planted_client: Client, tmp_path: Path
) -> None:
    data = json.loads(report.save(tmp_path / "qa.json").read_text())
    assert (data["level"], data["parts"]["functional"]["verdict"]) == (2, "pass")
    entry = report.entry("me")
    assert (entry["level"], entry["backend"], entry["who"], entry["sha256"]) == (2, "torch", "me", report.sha256)
    json.dumps(entry)
    task = fit(TASK.where(**FOUND_ON), planted_client, 4)
    pair = {"one": (true_circuit, task), "two": (of_neurons(planted_client, (0, 1)), task)}
    page = qa_page(report, circuit=true_circuit, interference=interference(planted_client, pair, n_random=4))
    assert data_of(page)["interference"]["names"] == ["one", "two"]
    asks_the_network_for_nothing(page)
    is_javascript(page, tmp_path)
    assert "contexts" not in data_of(qa_page(report, texts=False))["report"]["facts"]


def test_what_cannot_be_checked(planted_client: Client, true_circuit: Circuit) -> None:
    for circuit, options, match in (
        (true_circuit, {"task": None}, "task 'planted'; give task="),
        (true_circuit, {"n_random": 19}, "n_random must be 20 or more"),
        (true_circuit.with_origin(model_hash="x"), {}, "the circuit is of model x"),
        (true_circuit, {"found_on": {"letters": "none"}}, "has the labels"),
        (
            true_circuit.with_card(task={"n": 23}),
            {"task": replace(TASK, examples=TASK.examples[:4])},
            "left to check it on",
        ),
    ):
        with pytest.raises(InvalidArgument, match=match):
            checked(planted_client, circuit, **options)
    assert Untested("a", "b").why == "b"
