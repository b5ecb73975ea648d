"""Tasks as files: round trips, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.tasks import agreement, capitals, greater_than, ioi, load_task, save_task
from probewire.protos.errors import InvalidArgument, NotFound

GOOD: dict[str, Any] = {"clean": "When Mary", "corrupt": "When Tom", "correct": " x", "wrong": [" y", " z"]}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("task", [ioi(5), greater_than(5), agreement(5), capitals(5)], ids=lambda task: task.name)
def test_round_trip(task: Any, suffix: str, tmp_path: Path) -> None:
    path = save_task(task, tmp_path / f"task.{suffix}")
    again = load_task(path)
    assert again.examples == task.examples
    assert load_task(path, name=task.name).name == task.name
    if suffix == "json":
        assert again == task


def test_what_a_person_writes(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [GOOD | {"roles": {"subject": "Mary", "first": [0, 4]}, "labels": {"kind": "a"}}, GOOD]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    task = load_task(path)
    assert task.name == "mine"
    assert task.examples[0].roles == {"subject": (5, 9), "first": (0, 4)}
    assert task.examples[0].correct == (" x",)
    assert task.examples[1].wrong == (" y", " z")
    (tmp_path / "list.json").write_text(json.dumps([GOOD]))
    assert len(load_task(tmp_path / "list.json")) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"line 2: not JSON at column 2"),
        ("[1]", r"line 2: an example is an object, got list"),
        ({"clean": "a"}, r"line 2 lacks \['corrupt', 'correct', 'wrong'\]; it needs clean"),
        (GOOD | {"answer": "b"}, r"line 2 has the unknown \['answer'\]"),
        (GOOD | {"clean": 3}, r"line 2: clean must be text, got 3"),
        (GOOD | {"wrong": [3]}, r"line 2: wrong must be a text or a list of texts, got \[3\]"),
        (GOOD | {"wrong": " x"}, r"line 2: the answers \[' x'\] are both correct and wrong"),
        (GOOD | {"wrong": []}, r"line 2: the wrong answers need at least one"),
        (GOOD | {"roles": {"who": "q"}}, r"line 2: role 'who': 'q' occurs 0 times"),
        (GOOD | {"clean": "Mary or Mary", "roles": {"who": "Mary"}}, r"line 2: role 'who': 'Mary' occurs 2 times"),
        (GOOD | {"roles": {"who": [1]}}, r"line 2: role 'who' must be a text or two numbers"),
        (GOOD | {"roles": {"who": [4, 99]}}, r"line 2: role 'who' has the span \[4, 99\]"),
        (GOOD | {"roles": 3}, "line 2: roles must be an object"),
        (GOOD | {"labels": {"n": 3}}, "line 2: labels must be an object of texts"),
    ],
)
def test_a_bad_line_is_named(line: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(InvalidArgument, match=problem):
        load_task(path)


def test_a_bad_document_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('[\n{"clean": }]')
    with pytest.raises(InvalidArgument, match=r"bad.json: not JSON at line 2, column 11"):
        load_task(path)
    path.write_text("{}")
    with pytest.raises(InvalidArgument, match="must hold a list of examples"):
        load_task(path)
    path.write_text(json.dumps({"examples": [GOOD, {}]}))
    with pytest.raises(InvalidArgument, match=r"bad.json, example 1 lacks"):
        load_task(path)
    path.write_text("[]")
    with pytest.raises(InvalidArgument, match="holds no examples"):
        load_task(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="not UTF-8"):
        load_task(path)
    with pytest.raises(NotFound, match="there is no file"):
        load_task(tmp_path / "none.json")
