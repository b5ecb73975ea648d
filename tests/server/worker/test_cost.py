"""What forwards cost, found from a few of them: on costs that are known."""

from __future__ import annotations

import pytest

from probewire.server.worker.cost import GROWTH, Cost


def _noted(*sizes: int, fixed: float = 0.1, each: float = 0.001) -> Cost:
    cost = Cost()
    for rows in sizes:
        cost.note(rows, fixed + rows * each)
    return cost


def test_fixed_cost_and_cost_a_row_are_told_apart() -> None:
    cost = _noted(50, 100, 200)
    assert cost.seconds(400) == pytest.approx(0.5)
    assert cost.rows(0.4) == pytest.approx(300, abs=1)


def test_equal_sizes_do_not_tell_what_is_fixed() -> None:
    assert _noted(100, 100).seconds(200) == pytest.approx(0.4)


def test_a_next_one_grows_by_steps_and_shrinks_at_once() -> None:
    assert _noted(10).rows(60.0) == GROWTH * 10
    assert _noted(400).rows(0.25) == 200  # it took half a second
    assert _noted(1, fixed=10.0).rows(0.2) == 1
