"""What a sampling changes in one sequence's logits before a token is chosen: penalties, biases, a grammar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...protos.errors import FailedPrecondition, Internal
from ...protos.generation.sampling import Sampling
from .choice import Logits
from .grammars import Matcher

__all__ = ["Adjusted"]


class Adjusted:
    """Of one sequence. On the host and in float32, so that equal logits give equal tokens whatever computed them."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab_size: int, matcher: Matcher | None) -> None:
        self._sampling, self._matcher = sampling, matcher
        self._seen = np.zeros(vocab_size, dtype=np.bool_)
        """Of the prompt, and generated since."""
        self._seen[np.asarray(prompt, dtype=np.int64)] = True
        self._counts = np.zeros(vocab_size, dtype=np.int32)
        """How often each was generated."""
        self._biased = np.array([bias.token for bias in sampling.logit_bias], dtype=np.int64)
        self._biases = np.array([bias.bias for bias in sampling.logit_bias], dtype=np.float32)
        self._n = 0

    def of(self, logits: Logits, index: int) -> Logits:
        """The changed logits, [vocab], of new token `index`; those given stay. Raises where none can be chosen."""
        if index != self._n:  # its sequence has failed, and an engine that runs ahead does not know it yet
            raise Internal(f"token {index} was to be chosen after {self._n} others")
        sampling, found = self._sampling, logits.astype(np.float32, copy=True)
        if sampling.repetition_penalty != 1.0:
            penalty, seen = np.float32(sampling.repetition_penalty), found[self._seen]
            found[self._seen] = np.where(seen > 0, seen / penalty, seen * penalty)
        if sampling.frequency_penalty:
            found -= np.float32(sampling.frequency_penalty) * self._counts
        if sampling.presence_penalty:
            found[self._counts > 0] -= np.float32(sampling.presence_penalty)
        found[self._biased] += self._biases
        return found if self._matcher is None else self._masked(found, self._matcher)

    def _masked(self, logits: Logits, matcher: Matcher) -> Logits:
        if matcher.ended:  # an engine may run a step ahead of the one that ends the text
            return logits
        logits[~matcher.allowed()] = -np.inf
        if logits.max() == -np.inf:
            raise FailedPrecondition(
                "every token that sampling.grammar allows here has the logit -inf, by an edit at logits; leave one of them"
            )
        return logits

    def took(self, token: int) -> None:
        """The token that was chosen."""
        self._n += 1
        self._seen[token] = True
        self._counts[token] += 1
        if self._matcher is not None and not self._matcher.ended:
            self._matcher.take(token)
