"""What sampling changes in logits, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.sampling.adjusted import Adjusted
from probewire.protos.errors import Internal, InvalidArgument
from probewire.protos.generation.sampling import Grammar, Sampling, TokenBias

LOGITS = np.array([2.0, -1.0, 0.5, 0.0, -3.0], dtype=np.float32)


def after(sampling: Sampling, prompt: list[int], taken: list[int]) -> list[float]:
    """The logits after some tokens were taken."""
    made = Adjusted(sampling, prompt, len(LOGITS), None)
    for index, token in enumerate(taken):
        made.of(LOGITS, index)
        made.took(token)
    return made.of(LOGITS, len(taken)).tolist()


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    assert after(Sampling(), [0, 1], [2]) == LOGITS.tolist()


def test_a_repetition_penalty_divides_what_is_positive_and_multiplies_the_rest() -> None:
    # Tokens 0 (prompt), 1 (prompt), 2 (generated); 3 and 4 never were.
    assert after(Sampling(repetition_penalty=2.0), [0, 1, 1], [2]) == [1.0, -2.0, 0.25, 0.0, -3.0]


def test_frequency_counts_and_presence_does_not_and_neither_looks_at_the_prompt() -> None:
    assert after(Sampling(frequency_penalty=0.5), [0, 0], [1, 1, 3]) == [2.0, -2.0, 0.5, -0.5, -3.0]
    assert after(Sampling(presence_penalty=0.5), [0, 0], [1, 1, 3]) == [2.0, -1.5, 0.5, -0.5, -3.0]
    assert after(Sampling(presence_penalty=-1.0), [], [4]) == [2.0, -1.0, 0.5, 0.0, -2.0], "a negative one invites"


def test_biases_come_after_the_penalties() -> None:
    sampling = Sampling(repetition_penalty=2.0, logit_bias=(TokenBias(0, -100.0), TokenBias(4, 3.5)))
    assert after(sampling, [0], []) == [1.0 - 100.0, -1.0, 0.5, 0.0, 0.5]


def test_given_logits_are_left_as_they_are() -> None:
    given = LOGITS.copy()
    Adjusted(Sampling(logit_bias=(TokenBias(0, 1.0),)), [], 5, None).of(given, 0)
    assert (given == LOGITS).all()


def test_a_token_is_chosen_once() -> None:
    made = Adjusted(Sampling(presence_penalty=1.0), [], 5, None)
    made.of(LOGITS, 0)
    made.took(1)
    with pytest.raises(Internal, match="token 0 was to be chosen after 1"):
        made.of(LOGITS, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty must be a number in -2.0 … 2.0, got 2.1"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be a number"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number in 0.01 … 100.0, got 0.0"),
        ({"logit_bias": (TokenBias(1, 1.0), TokenBias(1, 2.0))}, "names token 1 twice"),
        ({"logit_bias": tuple(TokenBias(i, 0.5) for i in range(1025))}, "at most 1,024 tokens, got 1,025"),
        ({"grammar": Grammar("regex", "a"), "ignore_eos": True}, "ignore_eos goes on past the end"),
    ],
)
def test_out_of_bounds(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Sampling(**fields)


@pytest.mark.parametrize(("token", "bias"), [(-1, 0.0), (True, 0.0), (1.5, 0.0), (3, 101.0), (3, "1"), (3, None)])
def test_a_bias_is_a_token_and_a_number(token: object, bias: object) -> None:
    with pytest.raises(InvalidArgument, match="logit_bias"):
        TokenBias(token, bias)


@pytest.mark.parametrize(("kind", "text"), [("gbnf", "x"), ("regex", ""), ("regex", "a" * 65_537)])
def test_a_grammar_is_of_a_kind_and_of_a_size(kind: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match="grammar"):
        Grammar(kind, text)
