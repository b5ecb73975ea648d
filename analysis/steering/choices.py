"""Choices between words: how likely a prompt goes on with one of some words rather than with one of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, LogProb, WeightedSum
from ...clients.requests.prompts import Prompt, to_input
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ...protos.variants.use import VariantUse
from ..reports.at_ends import measure

__all__ = ["Choice", "choice", "logodds_of"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A prompt, and the first tokens of the words of either kind that may follow it."""

    prompt: Prompt
    ours: tuple[int, ...]
    theirs: tuple[int, ...]

    @property
    def metric(self) -> Metric:
        """log p(ours) − log p(theirs) at the last token, in nats: log-odds of the two sets."""
        return WeightedSum((LogProb(tokens=self.ours), LogProb(tokens=self.theirs)), (1.0, -1.0))


def choice(client: Client, prompt: Prompt, ours: Sequence[str], theirs: Sequence[str], *, model: str = "") -> Choice:
    """The choice as a model's tokenizer writes it; words that begin alike are told apart by their first token alone.

    Words of a text prompt are tokenised where they stand; behind a chat message they are one token each. Raises
    InvalidArgument for a word whose first token merges with the prompt's last, and for a token that is in both sets.
    """
    item = to_input(prompt)
    sets = [dict.fromkeys(_first(client, item.text, word, model) for word in words) for words in (ours, theirs)]
    if both := sets[0].keys() & sets[1].keys():
        texts = [word for word in (*ours, *theirs) if _first(client, item.text, word, model) in both]
        raise InvalidArgument(f"{', '.join(map(repr, texts))} begin with one token; a choice needs words that do not")
    return Choice(prompt, tuple(sets[0]), tuple(sets[1]))


def logodds_of(
    client: Client,
    choices: Sequence[Choice],
    *,
    hooks: Sequence[Hook] = (),
    variants: Sequence[VariantUse] = (),
    model: str = "",
) -> NDArray[np.float64]:
    """[choice]: log-odds of the one set against the other at each prompt's end, under hooks or variants."""
    found = measure(
        client,
        [one.prompt for one in choices],
        [one.metric for one in choices],
        [list(hooks)],
        variants=variants,
        model=model,
    )
    return found.values[0]


def _first(client: Client, text: str | None, word: str, model: str) -> int:
    """The first token of a word behind a text; without one (chat, token ids) the word must be one token."""
    if text is None:
        return client.token(word, model=model)
    before, ids = (client.tokenize(given, model=model).token_ids for given in (text, text + word))
    if not word or ids[: len(before)] != before or len(ids) == len(before):
        raise InvalidArgument(
            f"{word!r} behind {text[-30:]!r} does not begin with a token of its own; write it with its space"
        )
    return ids[len(before)]
