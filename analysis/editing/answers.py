"""What a model answers to prompts, read once each: logits at the rows that predict an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, Input, capture
from ...clients.requests.hooks import Hooks
from ..reports.subject import Uses, uses_of
from .wording import answer_ids

__all__ = ["Answers", "log_softmax"]

Floats = NDArray[np.float64]
_A_REQUEST = 32


class Answers:
    """A model under some hooks. What was read is kept, so that the base of many comparisons is computed once."""

    def __init__(
        self, client: Client, *, hooks: Hooks = (), variant: Uses = (), context: str = "", model: str = ""
    ) -> None:
        """`variant`: the names of loaded ones, as `variant=` of requests. `context`: a text before every prompt."""
        self.client, self.hooks, self.context, self.model = client, hooks, context, model
        self._variants = uses_of(variant) or None
        self._tokens: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._rows: dict[tuple[tuple[int, ...], int], NDArray[Any]] = {}

    def tokens(self, prompt: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(the prompt's ids, the answer's); none of an empty answer."""
        if (prompt, answer) not in self._tokens:
            text = self.context + prompt
            ids = self.client.tokenize(text, model=self.model).token_ids
            behind = answer_ids(self.client, text, answer, model=self.model) if answer else ()
            self._tokens[prompt, answer] = (ids, behind)
        return self._tokens[prompt, answer]

    def read(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Compute what is not known yet of some (prompt, answer), many in a request."""
        wanted = dict.fromkeys(self._key(*pair) for pair in pairs)
        missing = [key for key in wanted if key not in self._rows]
        for start in range(0, len(missing), _A_REQUEST):
            part = {str(i): key for i, key in enumerate(missing[start : start + _A_REQUEST])}
            lengths: dict[int, list[str]] = {}
            for name, (_, n) in part.items():
                lengths.setdefault(n, []).append(name)
            reads: list[Hook] = [
                capture("logits", positions=list(range(-n, 0)), inputs=names) for n, names in lengths.items()
            ]
            inputs = [Input(token_ids=ids, name=name, variants=self._variants) for name, (ids, _) in part.items()]
            run = self.client.run(inputs, capture=reads, hooks=self.hooks, model=self.model, progress=False)
            for name, key in part.items():
                self._rows[key] = np.asarray(run.inputs[name]["logits"], dtype=np.float32)

    def log_probs(self, prompt: str, answer: str = "") -> Floats:
        """[row, vocab]: at the rows that predict the answer's tokens, the answer itself read (teacher forcing)."""
        return log_softmax(self._logits(prompt, answer))

    def next_log_probs(self, prompt: str) -> Floats:
        """[vocab]: what follows the prompt."""
        return self.log_probs(prompt)[0]

    def log_prob(self, prompt: str, answer: str) -> float:
        """Of the whole answer."""
        rows, ids = self.log_probs(prompt, answer), self.tokens(prompt, answer)[1]
        return float(sum(row[token] for row, token in zip(rows, ids, strict=True)))

    def says(self, prompt: str, answer: str) -> bool:
        """Whether greedy decoding of the prompt gives the answer's tokens.

        That is so just where each of them is the likeliest behind those before it, so one forward says it.
        """
        return bool((self._logits(prompt, answer).argmax(axis=1) == np.array(self.tokens(prompt, answer)[1])).all())

    def texts(self, prompts: Sequence[str], n_tokens: int) -> dict[str, str]:
        """Greedy continuations."""
        if not prompts:
            return {}
        named = {str(i): prompt for i, prompt in enumerate(dict.fromkeys(prompts))}
        asked = [Input(text=self.context + p, name=name, variants=self._variants) for name, p in named.items()]
        found = self.client.generate(asked, hooks=self.hooks, max_new_tokens=n_tokens, model=self.model)
        return {named[name]: text for name, text in found.texts().items()}

    def _logits(self, prompt: str, answer: str) -> NDArray[Any]:
        key = self._key(prompt, answer)
        if key not in self._rows:
            self.read([(prompt, answer)])
        return self._rows[key]

    def _key(self, prompt: str, answer: str) -> tuple[tuple[int, ...], int]:
        ids, behind = self.tokens(prompt, answer)
        return (*ids, *behind[:-1]), max(len(behind), 1)


def log_softmax(logits: Any) -> Floats:
    """Natural log-probabilities over the last axis, in float64."""
    values: Floats = np.asarray(logits, dtype=np.float64)
    values = values - values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))
