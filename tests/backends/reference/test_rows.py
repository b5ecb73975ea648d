"""Which rows a hook chooses, and where a condition holds."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.reference.rows import chosen_positions, holds
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Condition, Span, Where
from probewire.protos.tensors import Tensor

TOKENS = [5, 6, 7, 5, 6, 7]
"""Four of the prompt, two generated."""


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Where(), [0, 1, 2, 3, 4, 5]),
        (Where(positions=(2, 0)), [2, 0]),
        (Where(positions=(-1, 5, -4)), [3, 5, 0]),
        (Where(positions=(-1, 3)), [3]),
        (Where(spans=(Span(1, 3),)), [1, 2]),
        (Where(spans=(Span(4, 6), Span(0, 2), Span(1, 3))), [4, 5, 0, 1, 2]),
        (Where(spans=(Span(-2),)), [2, 3, 4, 5]),
        (Where(spans=(Span(0, -1),)), [0, 1, 2]),
        (Where(spans=(Span(4, 99),)), [4, 5]),
        (Where(phase="prompt"), [0, 1, 2, 3]),
        (Where(phase="generated"), [4, 5]),
        (Where(phase="generated", positions=(3, 4)), [4]),
        (Where(token_ids=(5,)), [0, 3]),
        (Where(token_ids=(6, 7), phase="generated"), [4, 5]),
        (Where(when=Condition(0.0, unit=0)), [0, 1, 2, 3, 4, 5]),
        (Where(when=Condition(0.0, unit=0, latch="mean")), [4, 5]),
    ],
)
def test_chosen_positions(where: Where, expected: list[int]) -> None:
    assert chosen_positions(where, TOKENS, 4) == expected


@pytest.mark.parametrize("position", [6, -5])
def test_a_position_that_does_not_exist(position: int) -> None:
    with pytest.raises(InvalidArgument, match="outside 0 … 5"):
        chosen_positions(Where(positions=(position,)), TOKENS, 4)


VALUE = np.array([[1.0, 0.0], [2.0, 3.0], [6.0, -3.0], [0.0, 4.0]])
"""Two rows of the prompt would be 0 and 1."""


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (Condition(1.0, unit=0), [False, True, True, False]),
        (Condition(1.0, unit=0, op="ge"), [True, True, True, False]),
        (Condition(1.0, unit=0, op="lt"), [False, False, False, True]),
        (Condition(1.0, unit=0, op="le"), [True, False, False, True]),
        # 1, 8, 0, 8
        (Condition(7.5, direction=Tensor.of([1.0, 2.0])), [False, True, False, True]),
        # the prompt's last row has 2, its mean is 1.5
        (Condition(1.7, unit=0, latch="last"), [True] * 4),
        (Condition(1.7, unit=0, latch="mean"), [False] * 4),
        (Condition(1.4, unit=0, latch="mean"), [True] * 4),
        # cosines with (3, 4): 0.6, 18 / (5 √13) = 0.998, 6 / (5 √45) = 0.18, 0.8
        (Condition(0.7, direction=Tensor.of([3.0, 4.0]), normalise=True), [False, True, False, True]),
        # units over norms: 1, 2 / √13 = 0.555, 6 / √45 = 0.894, 0; the prompt's mean is 0.777
        (Condition(0.6, unit=0, normalise=True), [True, False, True, False]),
        (Condition(0.77, unit=0, normalise=True, latch="mean"), [True] * 4),
        (Condition(0.78, unit=0, normalise=True, latch="mean"), [False] * 4),
    ],
)
def test_condition(when: Condition, expected: list[bool]) -> None:
    assert holds(when, VALUE, 2).tolist() == expected


def test_the_cosine_of_a_row_of_zeros_is_zero() -> None:
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    for op, expected in (("ge", [True, True]), ("gt", [False, True])):
        assert holds(Condition(0.0, unit=1, op=op, normalise=True), rows, 2).tolist() == expected


def test_condition_of_one_head() -> None:
    heads = VALUE.reshape(2, 2, 2)
    assert holds(Condition(2.5, unit=1, head=1), heads, 2).tolist() == [True, True]
    assert holds(Condition(2.5, unit=1, head=0), heads, 2).tolist() == [False, False]


@pytest.mark.parametrize(
    ("when", "heads", "said"),
    [
        (Condition(0.0, unit=0), True, "needs a head"),
        (Condition(0.0, unit=0, head=0), False, "has no heads"),
        (Condition(0.0, unit=2), False, "unit 2"),
        (Condition(0.0, unit=0, head=2), True, "head 2"),
        (Condition(0.0, direction=Tensor.of([1.0])), False, "2 wide"),
    ],
)
def test_condition_refusals(when: Condition, heads: bool, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        holds(when, VALUE.reshape(2, 2, 2) if heads else VALUE, 2)
