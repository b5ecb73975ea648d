"""Measures against numpy on whole rows of logits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probewire.analysis.reports.measures import (
    choice_logodds,
    kl_to_base,
    perplexity_by_base,
    repetition,
)
from probewire.clients import Client, Hook, Scale, capture
from probewire.protos.errors import InvalidArgument

PROMPTS = ["The keys to the cabinet", "When Mary and John went to the store, John gave a drink to", "A"]
HOOKS = [Hook("resid_post.1", edit=Scale(0.7))]


def _logits(client: Client, prompt: str, hooks: list[Hook]) -> np.ndarray:
    rows = client.run(prompt, hooks=hooks, capture=capture("logits"))["logits"].astype(np.float64)
    return (
        rows - np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1, keepdims=True)) - rows.max(-1, keepdims=True)
    )


def test_divergence_from_the_base(tiny: Client) -> None:
    found = kl_to_base(tiny, PROMPTS, hooks=HOOKS)
    for prompt, value in zip(PROMPTS, found, strict=True):
        base, changed = (_logits(tiny, prompt, hooks) for hooks in ([], HOOKS))
        rows = (np.exp(base) * (base - changed)).sum(-1)
        assert value == pytest.approx(rows[1:].mean() if len(rows) > 1 else rows[0], rel=1e-4, abs=1e-7)
    assert kl_to_base(tiny, PROMPTS).max() <= 1e-9


def test_log_odds_of_two_sets(tiny: Client) -> None:
    a, b = (5, 9, 77), (11, 300)
    for hooks in ([], HOOKS):
        found = choice_logodds(tiny, PROMPTS, a, b, hooks=hooks)
        for prompt, value in zip(PROMPTS, found, strict=True):
            last = _logits(tiny, prompt, hooks)[-1]
            expected = np.log(np.exp(last[list(a)]).sum()) - np.log(np.exp(last[list(b)]).sum())
            assert value == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InvalidArgument, match="share none"):
        choice_logodds(tiny, PROMPTS, (1, 2), (2, 3))


def test_perplexity_by_the_base(tiny: Client) -> None:
    found = perplexity_by_base(tiny, PROMPTS[:2])
    for prompt, value in zip(PROMPTS[:2], found, strict=True):
        rows, ids = _logits(tiny, prompt, []), tiny.tokenize(prompt).token_ids
        own = [rows[i, ids[i + 1]] for i in range(len(ids) - 1)]
        assert value == pytest.approx(np.exp(-np.mean(own)), rel=1e-5)


def test_repetition_by_hand() -> None:
    """1 2 3 4 1 2 3 4 has five 4-grams, four of them new; seven 2-grams of four kinds, six 3-grams of four kinds."""
    share, entropy = repetition([1, 2, 3, 4, 1, 2, 3, 4])
    assert share == pytest.approx(1 / 5)
    two = -(3 * (2 / 7) * math.log2(2 / 7) + (1 / 7) * math.log2(1 / 7))
    three = -(2 * (2 / 6) * math.log2(2 / 6) + 2 * (1 / 6) * math.log2(1 / 6))
    assert entropy == pytest.approx((2 / 3 * two + 4 / 3 * three) / 2)
    assert repetition([7] * 20) == (1 - 1 / 17, 0.0)
    assert repetition([1, 2]) == (0.0, 0.0)
