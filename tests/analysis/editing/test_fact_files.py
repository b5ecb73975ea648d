"""Records of ours, CounterFact's and zsRE's, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.editing import Fact, Question, capital_facts, load_facts, save_facts
from probewire.protos.errors import InvalidArgument, NotFound


def test_ours_go_there_and_back(tmp_path: Path) -> None:
    facts = capital_facts("choose")
    assert load_facts(save_facts(facts, tmp_path / "facts.jsonl")) == facts
    assert len(load_facts(tmp_path / "facts.jsonl", limit=3)) == 3


def test_counterfact(tmp_path: Path) -> None:
    record = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Danielle Darrieux",
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
        "generation_prompts": ["Danielle Darrieux was born in"],
    }
    (tmp_path / "counterfact.json").write_text(json.dumps([record]))
    [fact] = load_facts(tmp_path / "counterfact.json")
    assert fact.asked == "The mother tongue of Danielle Darrieux is"
    assert (fact.target_new, fact.target_true, fact.relation) == (" English", " French", "P103")
    assert [one.prompt for one in fact.judged] == ["The native language of Montesquieu is"]
    assert [one.answer for one in fact.preserved] == [" French"]
    assert fact.generation == ("Danielle Darrieux was born in",)


def test_zsre(tmp_path: Path) -> None:
    record = {
        "subject": "Watts Humphrey",
        "src": "What university did Watts Humphrey attend?",
        "answers": ["Illinois Institute of Technology"],
        "rephrase": "What university did Watts Humphrey take part in?",
        "loc": "nq question: who played desmond doss father in hacksaw ridge",
        "loc_ans": "Hugo Weaving",
    }
    (tmp_path / "zsre.jsonl").write_text(json.dumps(record) + "\n\n")
    [fact] = load_facts(tmp_path / "zsre.jsonl")
    assert fact.prompt == "What university did {} attend?"
    assert (fact.target_new, fact.target_true) == (" Illinois Institute of Technology", "")
    assert fact.judged == (Question("who played desmond doss father in hacksaw ridge?", " Hugo Weaving"),)


@pytest.mark.parametrize(
    ("said", "record"),
    [
        ("line 1: a fact is an object", [1]),
        (r"lacking \['prompt'\]", {"subject": "a", "target_new": " b"}),
        (r"unknown \['target'\]", {"subject": "a", "prompt": "{}", "target_new": " b", "target": " c"}),
        ("once in its prompt", {"subject": "a", "prompt": "of {} and {}", "target_new": " b"}),
        (
            "new target other than the true one",
            {"subject": "a", "prompt": "{}", "target_new": " b", "target_true": " b"},
        ),
        ("it lacks 'subject'", {"requested_rewrite": {"target_true": {"str": "x"}}}),
        ("is not in src", {"src": "Who?", "subject": "Ada", "answers": ["x"]}),
        (
            "is not in the prompt",
            {"subject": "a", "prompt": "{}", "target_new": " b", "neighbours": [{"prompt": "x", "subject": "y"}]},
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(said: str, record: Any, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps(record))
    with pytest.raises(InvalidArgument, match=said):
        load_facts(tmp_path / "facts.jsonl")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        load_facts(tmp_path / "none.jsonl")
    for text, said in (("{", "not JSON"), ("{}", "a list of facts"), ("[]", "holds no facts")):
        (tmp_path / "facts.json").write_text(text)
        with pytest.raises(InvalidArgument, match=said):
            load_facts(tmp_path / "facts.json")


def test_braces_stand_for_the_subject_everywhere() -> None:
    fact = Fact("Ada", "{} works as a", " pilot", paraphrases=("By profession {} is a",), negations=("{} is not a",))
    assert fact.paraphrases == ("By profession Ada is a",)
    assert fact.negations == ("Ada is not a",)
    assert str(fact) == "Ada works as a pilot"
