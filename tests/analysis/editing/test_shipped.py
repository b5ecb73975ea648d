"""The facts that ship: their shape, and what the default model says to them, as the documentation tells."""

from __future__ import annotations

import pytest

from probewire.analysis.datasets import load_set
from probewire.analysis.editing import Answers, capital_facts, synthetic_facts
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument


def test_capitals() -> None:
    choose, judge = capital_facts("choose"), capital_facts("judge")
    assert (len(choose), len(judge)) == (8, 12)
    assert not {fact.subject for fact in choose} & {fact.subject for fact in judge}
    assert capital_facts("all") != choose
    for fact in (*choose, *judge):
        assert len(fact.paraphrases) == 3
        assert len(fact.generation) == 3
        halves = ({q.subject for q in fact.preserved}, {q.subject for q in fact.judged})
        assert not halves[0] & halves[1]
        assert len(halves[0] | halves[1]) == 26
        assert fact.subject not in halves[0] | halves[1]
        assert all(q.answer for q in fact.neighbours)
    with pytest.raises(InvalidArgument, match="allowed: choose, judge, all"):
        capital_facts("half")


def test_people() -> None:
    facts = synthetic_facts("all")
    data = load_set("facts_synthetic").data
    assert len({fact.subject for fact in facts}) == 40
    assert len(synthetic_facts("choose")) == 8
    assert {fact.target_new.strip() for fact in facts} == set(data["professions"])
    assert len(data["professions"]) == 10
    assert not any(fact.target_true for fact in facts)


@pytest.mark.parametrize("form", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 3))])
def test_what_the_default_model_knows(default_client: Client, form: int) -> None:
    data = load_set("facts_capitals").data
    answers, text = Answers(default_client), data["forms"][form]
    asked = [(text.replace("{}", country), f" {capital}") for country, capital in data["capitals"].items()]
    answers.read(asked)
    found = sum(answers.says(*pair) for pair in asked)
    assert abs(found - data["known"][form]) <= 2, "the default model answers otherwise than the data set says"
    assert all(len(answers.tokens(*pair)[1]) == 1 for pair in asked), "targets are single tokens"
    if form == data["edit_form"]:
        facts = capital_facts("all")
        assert all(answers.says(fact.asked, fact.target_true) for fact in facts), "what is edited is known"


def test_the_default_model_does_not_know_invented_people(default_client: Client) -> None:
    answers, facts = Answers(default_client), synthetic_facts("all")
    professions = [f" {one}" for one in load_set("facts_synthetic").data["professions"]]
    answers.read((fact.asked, "") for fact in facts)
    right = 0
    for fact in facts:
        row = answers.next_log_probs(fact.asked)
        ids = {name: answers.tokens(fact.asked, name)[1] for name in professions}
        assert all(len(tokens) == 1 for tokens in ids.values())
        right += max(ids, key=lambda name: row[ids[name][0]]) == fact.target_new
    assert right <= 10, "of 40, where chance among ten gives 4"
