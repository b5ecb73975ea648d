"""`echo` in /v1/completions: the prompt and its tokens' log-probabilities, before what is generated.

A hook more reads them at `logits`, after all edits there, so that they are the numbers of any other `next_logprob` capture.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....protos.model import GenerateRequest, InputStarted, Tokenized, TokenLogprob
from ....protos.spec import Capture, Hook, NextLogprob, Plan, Where
from ....protos.tensors import Array
from ..http.answer import Answer
from .logprobs import completion_text, largest
from .request import Completion

__all__ = ["Echo", "EchoedPrompt", "Reading", "reading"]

_ID = "echo of /v1/completions"


def reading(request: GenerateRequest, n: int) -> GenerateRequest:
    """The request with a hook that reads each prompt's log-probabilities, once for its `n` choices."""
    top = request.sampling.logprobs
    if top is None:
        return request
    names = tuple(item.name for item in request.inputs[::n])
    read = Hook("logits", capture=Capture(reduce=NextLogprob(top)), where=Where(phase="prompt"), inputs=names, id=_ID)
    return replace(request, plan=Plan((*request.plan.hooks, read)))


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the hook read, apart from what the caller asked for."""

    rest: Answer
    parts: Mapping[tuple[str, str], Array]
    """(input, part of the capture) → its rows."""
    ids: tuple[int, ...]
    """Every token whose text is needed, once."""

    @classmethod
    def of(cls, answer: Answer) -> Reading:
        """Part an answer's captures."""
        mine = [capture for capture in answer.captures if capture.id == _ID]
        rest = replace(answer, captures=tuple(capture for capture in answer.captures if capture.id != _ID))
        parts = {(capture.key.input, capture.key.part): capture.array for capture in mine}
        ids = {i for item in answer.started.inputs for i in item.token_ids}
        ids |= {int(i) for (_, part), array in parts.items() if part == "index" for i in np.unique(array)}
        return cls(rest, parts, tuple(sorted(ids)))


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """One prompt as it is given back."""

    text: str
    logprobs: Mapping[str, list[Any]]
    """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`; the first token has no log-probability."""


class Echo:
    """The prompts of a request."""

    def __init__(self, reading: Reading, completion: Completion, pieces: Tokenized) -> None:
        """`pieces`: the texts of `reading.ids`, in their order."""
        self._read, self._completion = reading, completion
        self._started = {item.name: item for item in reading.rest.started.inputs}
        told = zip(pieces.token_ids, pieces.tokens, pieces.raw, strict=True)
        self._pieces = {i: TokenLogprob(i, text, 0.0, raw) for i, text, raw in told}
        self._made: dict[int, EchoedPrompt] = {}

    def prompt(self, index: int) -> EchoedPrompt:
        """Prompt `index`, before any of its choices."""
        if index not in self._made:
            item = self._completion.request.inputs[index * self._completion.n]
            self._made[index] = self._prompt(self._started[item.name], item.text)
        return self._made[index]

    def _prompt(self, started: InputStarted, given: str | None) -> EchoedPrompt:
        pieces = [self._pieces[i].raw for i in started.token_ids]
        whole = b"".join(pieces).decode(errors="replace")
        text = whole if given is None else given
        # Special tokens before a text that was given as text are no part of it, nor is a space that its first piece has.
        before = len(whole) - len(text) if whole.endswith(text) else 0
        offsets: list[int] = []
        decoder, so_far = getincrementaldecoder("utf-8")(errors="replace"), 0
        for piece in pieces:
            offsets.append(min(len(text), max(0, so_far - before)))
            so_far += len(decoder.decode(piece))
        tokens = [completion_text(self._pieces[i]) for i in started.token_ids]
        logprobs: dict[str, list[Any]] = {"tokens": tokens, "text_offset": offsets}
        if self._completion.logprobs:
            logprobs["token_logprobs"], logprobs["top_logprobs"] = self._likelihoods(started, tokens)
        return EchoedPrompt(text, logprobs)

    def _likelihoods(self, started: InputStarted, tokens: list[str]) -> tuple[list[Any], list[Any]]:
        """Each token's own, and the likeliest at its place with it; none for the first one."""
        n = len(started.token_ids) - 1
        none = np.zeros((n, 0))
        parts = self._read.parts
        own = parts.get((started.name, ""), none)[:n]  # the row after the prompt is the first new token's
        values, index = (parts.get((started.name, part), none)[:n] for part in ("value", "index"))
        tops: list[Any] = [None]
        for row, text in enumerate(tokens[1:]):
            likely = [
                (completion_text(self._pieces[int(i)]), float(value))
                for i, value in zip(index[row], values[row], strict=True)
            ]
            tops.append(largest([*likely, (text, float(own[row]))]))
        return [None, *map(float, own)], tops
