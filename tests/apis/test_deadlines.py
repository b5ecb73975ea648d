"""Requests whose deadline passes, wherever they are by then: checked, queued, running, answered, being stored."""

from __future__ import annotations

import pytest

from tests.apis.deadlines import stress
from tests.apis.serving import Served

ANSWERS = {200, 429, 504}
"""Done, no room, too late."""


def test_nothing_is_held_for_any_of_them(served: Served, model: str) -> None:
    answers = stress(served, model, 60, 0.5)
    assert answers.keys() <= ANSWERS, answers
    assert answers.get(504, 0) >= 5, "some were cut off"


@pytest.mark.slow
def test_nothing_is_held_for_any_of_six_hundred(served: Served, model: str) -> None:
    answers = stress(served, model, 600, 2.0)
    assert answers.keys() <= ANSWERS, answers
    assert answers.get(504, 0) >= 50, answers
