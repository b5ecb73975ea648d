"""Multiple-choice questions, and the files that they come in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from ....protos.errors import InvalidArgument, NotFound

__all__ = ["LETTERS", "Question", "Questions", "load_questions", "questions_of"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """One question, its choices, and which of them is right."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index into choices."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.question.strip() or not all(choice.strip() for choice in self.choices):
            raise InvalidArgument("a question and its choices must not be empty")
        if not 2 <= len(self.choices) <= len(LETTERS) or len(set(self.choices)) != len(self.choices):
            raise InvalidArgument(f"a question needs 2 to {len(LETTERS)} distinct choices, got {list(self.choices)}")
        if not 0 <= self.answer < len(self.choices):
            raise InvalidArgument(f"answer {self.answer} is no index into {len(self.choices)} choices")

    def turned(self, by: int) -> Question:
        """The same question, its choices in another cyclic order."""
        n = len(self.choices)
        return Question(self.question, tuple(self.choices[(i + by) % n] for i in range(n)), (self.answer - by) % n)


Questions = str | Path | Sequence[Question]
"""A JSONL file, or the questions themselves."""


def questions_of(source: Questions) -> list[Question]:
    """The questions; raises as `load_questions`, and InvalidArgument for none."""
    found = load_questions(source) if isinstance(source, (str, Path)) else list(source)
    if not found or not all(isinstance(question, Question) for question in found):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may be untyped
        raise InvalidArgument("give at least one Question, or the path of a JSONL file")
    return found


def load_questions(path: str | Path) -> list[Question]:
    """Questions from a JSONL file: {"question": …, "choices": […], "answer": index, letter or the choice itself}.

    Raises NotFound for no file, InvalidArgument with the line that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text: {error}") from error
    found = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InvalidArgument(f"{path} holds no questions")
    return found


def _question(line: str, where: str) -> Question:
    try:
        item: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{where}: not JSON at column {error.colno}: {error.msg}") from error
    fields = cast("Mapping[str, Any]", item if isinstance(item, dict) else {})
    missing = [name for name in ("question", "choices", "answer") if name not in fields]
    if missing:
        raise InvalidArgument(f"{where} lacks {', '.join(missing)}; it needs question, choices and answer")
    choices: object = fields["choices"]
    if not isinstance(fields["question"], str) or not _is_texts(choices):
        raise InvalidArgument(f"{where}: question must be text and choices a list of texts")
    try:
        return Question(fields["question"], tuple(choices), _index(fields["answer"], choices))
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from error


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value))


def _index(answer: Any, choices: Sequence[str]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(answer.upper())
    raise InvalidArgument(f"answer {answer!r} is neither an index, a letter nor one of the choices {list(choices)}")
