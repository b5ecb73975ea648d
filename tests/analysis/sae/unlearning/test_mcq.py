"""Wilson intervals against scipy, scores against whole logits."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.unlearning.mcq import (
    Accuracy,
    answer,
    known_questions,
    letter_prompt,
    scored_texts,
    text_prompt,
)
from probewire.analysis.sae.unlearning.questions import Question
from probewire.clients import Client, InvalidArgument, ablate

log_softmax: Any = import_module("scipy.special").log_softmax
binomtest: Any = import_module("scipy.stats").binomtest
QUESTIONS = [
    Question("What is left?", ("a stone", "two stones", "nothing at all"), 1),
    Question("Who?", ("me", "you"), 0),
]


@pytest.mark.parametrize(("right", "of"), [(0, 7), (3, 7), (7, 7), (1, 1), (40, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_against_scipy(right: int, of: int, confidence: float) -> None:
    oracle = binomtest(right, of).proportion_ci(confidence, method="wilson")
    assert Accuracy(right, of, confidence).interval == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_accuracy_of_nothing() -> None:
    nothing = Accuracy(0, 0)
    assert np.isnan(nothing.value)
    assert nothing.interval == (0.0, 1.0)
    assert nothing.to_json()["accuracy"] is None
    assert str(Accuracy(3, 4)) == "3/4 (0.750, 0.301 … 0.954)"


def by_hand(client: Client, question: Question, divide: str) -> list[float]:
    """From whole logits: the sum over the choice's tokens, which begin after those of the prompt."""
    n = len(client.tokenize(text_prompt(question)).token_ids)
    found: list[float] = []
    for text, choice in zip(scored_texts(question, "text"), question.choices, strict=True):
        run = client.run(text, capture="logits")
        logprobs = log_softmax(run["logits"].astype(np.float64), axis=-1)
        score = sum(logprobs[i - 1, run.token_ids[i]] for i in range(n, len(run.token_ids)))
        sizes = {"byte": len(choice.encode()), "token": len(run.token_ids) - n, "none": 1}
        found.append(float(score) / sizes[divide])
    return found


@pytest.mark.parametrize("length", ["byte", "token", "none"])
def test_written_out_choices_against_whole_logits(client: Client, length: Any) -> None:
    found = answer(client, QUESTIONS, length=length)
    for row, question in zip(found, QUESTIONS, strict=True):
        assert row == pytest.approx(by_hand(client, question, length), abs=1e-4)


def test_letters_against_whole_logits(client: Client) -> None:
    found = answer(client, QUESTIONS, form="letter")
    for row, question in zip(found, QUESTIONS, strict=True):
        logits = client.run(f"{letter_prompt(question)} ", capture="logits")["logits"][-1]
        ids = [client.tokenize(letter).token_ids[-1] for letter in "ABC"[: len(question.choices)]]
        assert row == pytest.approx(logits[ids].astype(np.float64), abs=1e-5)


def test_more_questions_than_a_request_holds_and_hooks_reach_them(client: Client) -> None:
    many = [Question(f"Number {i}?", ("x", "yz"), i % 2) for i in range(37)]
    found = answer(client, many)
    assert np.stack([found[0], found[36]]) == pytest.approx(
        np.stack([answer(client, [many[0]])[0], answer(client, [many[36]])[0]]), abs=1e-5
    )
    hooked = answer(client, many, hooks=[ablate("mlp_out.1")])
    assert all(np.abs(one - two).max() > 1e-4 for one, two in zip(found, hooked, strict=True))


def test_what_the_model_knows(client: Client) -> None:
    many = [Question(f"Number {i}?", ("x", "yz", "w w"), i % 3) for i in range(12)]
    scores = answer(client, many)
    expected = [q for q, row in zip(many, scores, strict=True) if row.argmax() == q.answer]
    assert 0 < len(expected) < 12
    assert known_questions(client, many) == expected
    assert known_questions(client, []) == []


def test_letters_are_known_only_in_every_order(client: Client) -> None:
    many = [Question(f"Number {i}?", ("x", "yz"), i % 2) for i in range(10)]
    known = known_questions(client, many, form="letter")
    for question in many:
        right = [
            int(answer(client, [turned], form="letter")[0].argmax()) == turned.answer
            for turned in (question.turned(0), question.turned(1))
        ]
        assert (question in known) == all(right)
    once = [q for q, row in zip(many, answer(client, many, form="letter"), strict=True) if row.argmax() == q.answer]
    assert len(known) < len(once), "some answers were the letter's, not the choice's"


def test_unknown_forms(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="text or letter"):
        answer(client, QUESTIONS, form="essay")
    with pytest.raises(InvalidArgument, match="byte, token or none"):
        answer(client, QUESTIONS, length="word")
