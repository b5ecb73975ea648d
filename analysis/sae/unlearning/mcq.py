"""Multiple-choice questions answered by log-probability through the server, with or without hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Gather, Hook, capture
from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from .questions import LETTERS, Question

__all__ = ["Accuracy", "Form", "Length", "answer", "known_questions", "scored_texts"]

Form = Literal["text", "letter"]
"""text: each choice is written out after the question, and scored by its own log-probability.
letter: the choices are listed as A, B, … before "Answer:", and the letter's logit decides."""
Length = Literal["byte", "token", "none"]
"""What a written-out choice's log-probability is divided by: its UTF-8 bytes, its tokens, or nothing."""

INPUTS_A_REQUEST = 32


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of how many, with the Wilson interval of the share."""

    right: int
    of: int
    confidence: float = 0.95

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.right / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """(p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n) (Wilson 1927); (0, 1) of nothing."""
        if not self.of:
            return 0.0, 1.0
        z, n, p = NormalDist().inv_cdf(0.5 + self.confidence / 2), self.of, self.value
        middle, half = p + z * z / (2 * n), z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
        low, high = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        return (0.0 if self.right == 0 else low), (1.0 if self.right == self.of else high)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        low, high = self.interval
        return {"right": self.right, "of": self.of, "accuracy": self.value if self.of else None, "wilson": [low, high]}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.right}/{self.of} ({self.value:.3f}, {low:.3f} … {high:.3f})" if self.of else "0/0"


def answer(
    client: Client,
    questions: Sequence[Question],
    *,
    hooks: Sequence[Hook] = (),
    form: Form = "text",
    length: Length = "byte",
    label: str = "answering",
    progress: bool = True,
    model: str = "",
) -> list[NDArray[np.float64]]:
    """Score of each choice of each question, [choice]; the model's answer is the largest, the first of equals.

    form "text": the natural log-probability of " choice" after "Question: …\\nAnswer:", divided as `length` says.
    form "letter": the logit of " A", " B", … after the listed choices (where they are a space and a letter, after the
    space). Only these numbers cross the wire.
    """
    if form not in ("text", "letter") or length not in ("byte", "token", "none"):
        raise InvalidArgument(f"form is text or letter and length byte, token or none; got {form!r}, {length!r}")
    hooks = tuple(hooks)
    if form == "letter":
        return _letters(client, questions, hooks, label, model, progress=progress)
    return _texts(client, questions, hooks, length, label, model, progress=progress)


def known_questions(
    client: Client,
    questions: Sequence[Question],
    *,
    form: Form = "text",
    length: Length = "byte",
    progress: bool = True,
    model: str = "",
) -> list[Question]:
    """Those that the model answers. With letters, in every cyclic order of the choices: else a model that always

    says "A" would know a quarter of them.
    """
    turns = max((len(q.choices) for q in questions), default=0) if form == "letter" else 1
    known = list(questions)
    for by in range(turns):
        if known:
            scores = answer(
                client,
                [q.turned(by) if form == "letter" else q for q in known],
                form=form,
                length=length,
                label="what the model knows",
                progress=progress,
                model=model,
            )
            known = [q for q, row in zip(known, scores, strict=True) if int(row.argmax()) == q.turned(by).answer]
    return known


def scored_texts(question: Question, form: Form) -> list[str]:
    """The texts that the model reads to answer."""
    if form == "letter":
        return [letter_prompt(question)]
    return [f"{text_prompt(question)} {choice.strip()}" for choice in question.choices]


def letter_prompt(question: Question) -> str:
    """The question, its choices by letter, and "Answer:"."""
    listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return f"Question: {question.question.strip()}\n{listed}Answer:"


def text_prompt(question: Question) -> str:
    """The question and "Answer:"."""
    return f"Question: {question.question.strip()}\nAnswer:"


def _letters(
    client: Client, questions: Sequence[Question], hooks: Sequence[Hook], label: str, model: str, *, progress: bool
) -> list[NDArray[np.float64]]:
    found: list[NDArray[np.float64]] = []
    with progress_bar(label, "plans", show=progress) as bar:
        for start in range(0, len(questions), INPUTS_A_REQUEST):
            bar(start, len(questions))
            some = {
                str(i): _lettered(client, q, model) for i, q in enumerate(questions[start : start + INPUTS_A_REQUEST])
            }
            reads = [
                capture("logits", reduce=Gather(letters), positions=-1, inputs=name)
                for name, (_, letters) in some.items()
            ]
            prompts = {name: list(ids) for name, (ids, _) in some.items()}
            run = client.run(prompts, hooks=hooks, capture=reads, model=model)
            found += [run.inputs[name]["logits"][0].astype(np.float64) for name in some]
    return found


def _lettered(client: Client, question: Question, model: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt up to where the letters part, and the token of each letter there."""
    prompt = letter_prompt(question)
    whole = [client.tokenize(f"{prompt} {LETTERS[i]}", model=model).token_ids for i in range(len(question.choices))]
    shared = min(_common(whole[0], ids) for ids in whole[1:])
    if any(len(ids) != shared + 1 for ids in whole):
        raise InvalidArgument("letters are no single tokens for this model; use form text")
    return whole[0][:shared], tuple(ids[shared] for ids in whole)


@dataclass(frozen=True, slots=True)
class _Written:
    """One question with one choice written out."""

    token_ids: tuple[int, ...]
    start: int
    """The first token that the choices do not share with the question, nor with each other's prompts."""
    size: float
    """What its log-probability is divided by."""


def _texts(
    client: Client,
    questions: Sequence[Question],
    hooks: Sequence[Hook],
    length: Length,
    label: str,
    model: str,
    *,
    progress: bool,
) -> list[NDArray[np.float64]]:
    written = [item for question in questions for item in _written(client, question, length, model)]
    scores: list[float] = []
    with progress_bar(label, "plans", show=progress) as bar:
        for start in range(0, len(written), INPUTS_A_REQUEST):
            bar(start, len(written))
            scores += _scores(client, written[start : start + INPUTS_A_REQUEST], hooks, model)
    edges = np.cumsum([len(question.choices) for question in questions])[:-1]
    return list(np.split(np.array(scores), edges))


def _written(client: Client, question: Question, length: Length, model: str) -> list[_Written]:
    prompt = text_prompt(question)
    own = client.tokenize(prompt, model=model).token_ids
    whole = [client.tokenize(text, model=model).token_ids for text in scored_texts(question, "text")]
    # Where the tokenizer merges across the border, every choice is scored from the last token that all have in common.
    shared = min(_common(own, ids) for ids in whole)
    if shared < 1 or any(len(ids) <= shared for ids in whole):
        raise InvalidArgument(f"the choices of {question.question!r} are no tokens of their own for this model")
    sizes: Mapping[Length, Sequence[float]] = {
        "byte": [float(len(choice.strip().encode())) for choice in question.choices],
        "token": [float(len(ids) - shared) for ids in whole],
        "none": [1.0] * len(whole),
    }
    return [_Written(ids, shared, size) for ids, size in zip(whole, sizes[length], strict=True)]


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _scores(client: Client, written: Sequence[_Written], hooks: Sequence[Hook], model: str) -> list[float]:
    prompts = {str(index): list(item.token_ids) for index, item in enumerate(written)}
    reads = [
        capture("logits", reduce="next_logprob", spans=[(item.start - 1, len(item.token_ids) - 1)], inputs=name)
        for name, item in zip(prompts, written, strict=True)
    ]
    run = client.run(prompts, hooks=hooks, capture=reads, model=model)
    return [
        float(run.inputs[name]["logits"].astype(np.float64).sum()) / item.size
        for name, item in zip(prompts, written, strict=True)
    ]
