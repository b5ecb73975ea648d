"""Whose rows go forward next, where each sequence has a forward of its own."""

from __future__ import annotations

from probewire.backends.turns import Turns


def test_each_token_goes_forward_and_prompts_fill_a_budget_in_order() -> None:
    turns = Turns(8)
    assert turns.next({"a": 20, "b": 1, "c": 30}, 8) == [("a", 8), ("b", 1)]
    assert turns.next({"c": 30, "a": 12, "b": 1}, 8) == [("c", 8), ("b", 1)]
    assert turns.next({"c": 30, "a": 12, "b": 1}, 16) == [("c", 8), ("a", 8), ("b", 1)]


def test_pieces_depend_on_nobody_and_no_prompt_overtakes_another() -> None:
    """A piece is as long as it is alone: what does not fit in what is left of a step waits for the next."""
    turns = Turns(8)
    assert turns.next({"a": 5, "b": 3, "c": 4}, 8) == [("a", 5), ("b", 3)]
    assert turns.next({"c": 4, "d": 9, "e": 2}, 8) == [("c", 4)]
    assert turns.next({"d": 9}, 8) == [("d", 8)]


def test_a_prompt_that_is_read_whole_comes_whole() -> None:
    turns = Turns(0)
    assert turns.next({"a": 900, "b": 700, "c": 1}, 8) == [("a", 900), ("c", 1)]
    assert turns.next({"a": 3, "b": 4, "c": 5}, 8) == [("a", 3), ("b", 4)]


def test_nobody_left() -> None:
    assert Turns(8).next({}, 8) == []
