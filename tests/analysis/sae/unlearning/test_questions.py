"""Questions from files, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.unlearning.questions import Question, load_questions, questions_of
from probewire.clients import InvalidArgument, NotFound

QUESTION = Question("What is left?", ("a stone", "two stones", "nothing at all"), 1)


def write(path: Path, *items: Any) -> Path:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items), encoding="utf-8")
    return path


def test_answers_as_index_letter_or_text(tmp_path: Path) -> None:
    base = {"question": "Q?", "choices": ["one", "two", "three"]}
    path = write(tmp_path / "q.jsonl", *({**base, "answer": given} for given in (1, "B", "b", "two")), "", "  ")
    assert [q.answer for q in load_questions(path)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("{not json", "line 1: not JSON at column 2"),
        ("[1]", "lacks question, choices, answer"),
        ({"question": "Q?", "choices": ["a", "b"]}, "lacks answer"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": 2}, "no index into 2 choices"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": "C"}, "neither an index, a letter"),
        ({"question": "Q?", "choices": ["a", "b"], "answer": True}, "neither an index"),
        ({"question": "Q?", "choices": ["a", "a"], "answer": 0}, "distinct choices"),
        ({"question": "Q?", "choices": ["a"], "answer": 0}, "2 to 26"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "must not be empty"),
        ({"question": "Q?", "choices": "ab", "answer": 0}, "choices a list"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, item: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        load_questions(write(tmp_path / "q.jsonl", item))


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(InvalidArgument, match="no questions"):
        load_questions(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        load_questions(tmp_path / "latin.jsonl")


def test_turning_keeps_the_right_choice() -> None:
    question = QUESTION
    for by in range(4):
        turned = question.turned(by)
        assert turned.choices[turned.answer] == "two stones"
    assert question.turned(1).choices == ("two stones", "nothing at all", "a stone")


def test_questions_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": QUESTION.question, "choices": QUESTION.choices, "answer": 1})
    assert questions_of([QUESTION]) == questions_of(path) == questions_of(str(path)) == [QUESTION]
    with pytest.raises(InvalidArgument, match="at least one Question"):
        questions_of([])
