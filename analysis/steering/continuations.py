"""What a change does to the text that follows prompts: how likely the base finds it, and how much it repeats itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook
from ...clients.requests.prompts import Prompt, to_input
from ..reports.likelihoods import Piece, likelihoods
from ..reports.measures import repetition
from ..reports.subject import Subject

__all__ = ["Continued", "continuation_perplexity", "continued"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Continued:
    """Greedy continuations under one change."""

    texts: tuple[str, ...]
    """[prompt]."""
    perplexity: Floats
    """[prompt]: of the continuation, read by the base behind the prompt."""
    repetition: Floats
    """[prompt]: share of 4-grams of tokens that occurred before."""


def continued(
    client: Client,
    prompts: Sequence[Prompt],
    changes: Mapping[str, Sequence[Hook]],
    *,
    n_new: int = 24,
    model: str = "",
) -> dict[str, Continued]:
    """Each change's greedy continuations of `n_new` tokens. Hooks may name a prompt by its number ("0")."""
    items = [to_input(prompt, str(i)) for i, prompt in enumerate(prompts)]
    found: dict[str, Continued] = {}
    for name, hooks in changes.items():
        made = client.generate(items, hooks=list(hooks), model=model, max_new_tokens=n_new, ignore_eos=True)
        own = [made.inputs[item.name] for item in items]
        whole = [(one.prompt_ids, [token.id for token in one.new]) for one in own]
        found[name] = Continued(
            tuple(one.text for one in own),
            continuation_perplexity(client, whole, model=model),
            np.array([repetition(new)[0] for _, new in whole]),
        )
    return found


def continuation_perplexity(
    client: Client, continuations: Sequence[tuple[Sequence[int], Sequence[int]]], *, model: str = ""
) -> Floats:
    """[text]: exp of the mean surprisal of each (prompt, continuation)'s continuation, by the model without hooks."""
    pieces = [Piece((*prompt, *new), len(prompt)) for prompt, new in continuations]
    [scores] = likelihoods([Subject(client, model)], pieces, progress=False)
    return np.array([float(np.exp(-one.own.mean())) for one in scores])
