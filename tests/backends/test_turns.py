"""Whose rows go forward next, where each sequence has a forward of its own."""

from __future__ import annotations

from probewire.backends.turns import Turns


def test_tokens_come_before_prompts_and_prompts_take_turns() -> None:
    turns = Turns(8)
    left = {"a": 20, "b": 1, "c": 30}
    assert turns.next(left, 8) == [("b", 1), ("a", 8)]
    assert turns.next({**left, "a": 12}, 8) == [("b", 1), ("c", 8)]
    assert turns.next({**left, "a": 12, "c": 22}, 8) == [("b", 1), ("a", 8)]


def test_pieces_depend_on_nobody() -> None:
    """A piece is as long as it is alone: what does not fit in what is left of a step waits for the next."""
    turns = Turns(8)
    assert turns.next({"a": 5, "b": 3, "c": 4}, 8) == [("a", 5), ("b", 3)]
    assert turns.next({"c": 4, "d": 9}, 8) == [("c", 4)]
    assert turns.next({"d": 9}, 8) == [("d", 8)]


def test_prompts_that_are_read_whole_come_one_at_a_time() -> None:
    turns = Turns(0)
    assert turns.next({"a": 900, "b": 700, "c": 1}, 8) == [("c", 1), ("a", 900)]
    assert turns.next({"b": 700, "c": 1}, 8) == [("c", 1), ("b", 700)]
    assert Turns(0).next({"a": 3, "b": 4, "c": 5}, 8) == [("a", 3), ("b", 4)]


def test_nobody_left() -> None:
    assert Turns(8).next({}, 8) == []
