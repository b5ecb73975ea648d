"""Prompts as the model reads them: which token is the subject's last, and which rows say the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...clients import Client
from ...protos.errors import InvalidArgument
from .fact import Fact, Question, blank

__all__ = ["PREFIXES", "Worded", "answer_ids", "question_wording", "worded", "wordings"]

PREFIXES = ("", "It is well known. ", "The book says this. ", "We looked it up. ", "In the afternoon it rained. ")
"""Nothing, and four short texts: a key is the mean over what may stand before. Fixed, so that an edit can be repeated."""


@dataclass(frozen=True, slots=True)
class Worded:
    """One prompt with its answer, as tokens."""

    ids: tuple[int, ...]
    """Prompt and answer but for the answer's last token, which no row has to read."""
    position: int
    """Of the subject's last token."""
    answer: tuple[int, ...]
    """Token ids; the row at `first` predicts the first of them."""
    first: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Positions that predict the answer's tokens, in order."""
        return tuple(range(self.first, self.first + len(self.answer)))


def worded(client: Client, text: str, end: int, answer: str, *, model: str = "") -> Worded:
    """A text whose subject ends before its character `end`, and an answer. Raises InvalidArgument where tokens run over these."""
    prompt = client.tokenize(text, model=model).token_ids
    before = client.tokenize(text[:end], model=model).token_ids
    if not before or prompt[: len(before)] != before:
        raise InvalidArgument(
            f"the tokenizer has no token that ends with the subject: {text[:end]!r} in {text!r}; put a space or a word "
            "of its own behind the subject"
        )
    ids = answer_ids(client, text, answer, model=model) if answer else ()
    return Worded((*prompt, *ids[:-1]), len(before) - 1, ids, len(prompt) - 1)


def answer_ids(client: Client, text: str, answer: str, *, model: str = "") -> tuple[int, ...]:
    """The tokens of an answer behind a text. Raises InvalidArgument where the tokenizer joins the two."""
    prompt = client.tokenize(text, model=model).token_ids
    whole = client.tokenize(text + answer, model=model).token_ids
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise InvalidArgument(
            f"{answer!r} does not begin a token of its own behind {text!r}; a leading space often matters: "
            f"{' ' + answer.strip()!r}"
        )
    return whole[len(prompt) :]


def wordings(
    client: Client, fact: Fact, prefixes: Sequence[str] = PREFIXES, answer: str | None = None, *, model: str = ""
) -> tuple[Worded, ...]:
    """A fact's prompt behind each prefix. `answer`: its new target by default; empty: none.

    Where the subject's last token would be the very first of a sequence, whose activations are of another kind, that
    wording is left out. Raises InvalidArgument where none is left.
    """
    said = fact.target_new if answer is None else answer
    end = blank(fact.prompt, fact.subject)
    found = [worded(client, prefix + fact.asked, len(prefix) + end, said, model=model) for prefix in prefixes]
    kept = tuple(one for one in found if one.position > 0)
    if not kept:
        raise InvalidArgument(
            f"the subject {fact.subject!r} is the first token of {fact.asked!r} with every prefix given, and a first token's "
            "activations are the same whatever it is; give a prefix"
        )
    return kept


def question_wording(client: Client, question: Question, *, model: str = "") -> Worded:
    """A question with its subject, where it names one; else its last token stands for it."""
    if not question.subject:
        ids = client.tokenize(question.prompt, model=model).token_ids
        answer = answer_ids(client, question.prompt, question.answer, model=model)
        return Worded((*ids, *answer[:-1]), len(ids) - 1, answer, len(ids) - 1)
    end = question.prompt.rindex(question.subject) + len(question.subject)
    return worded(client, question.prompt, end, question.answer, model=model)
