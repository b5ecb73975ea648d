"""Positions of unequal prompts that pair."""

from __future__ import annotations

import difflib
import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from probewire.clients import Client, InvalidArgument, align, patch
from probewire.protos.model import Tokenized


def words(text: str) -> Tokenized:
    """A token a word, its space before it."""
    tokens = tuple(word if i == 0 else f" {word}" for i, word in enumerate(text.split()))
    return Tokenized(tuple(range(len(tokens))), tokens, text)


def longest(one: list[int], other: list[int]) -> int:
    """Of the longest common subsequence, by the textbook's recursion."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_from_either_end() -> None:
    assert align([1, 2, 3, 4], [9, 8], "end").pairs == ((2, 0), (3, 1))
    assert align([1, 2], [9, 8, 7, 6], "end").pairs == ((0, 2), (1, 3))
    assert align([1, 2, 3, 4], [9, 8], "start").pairs == ((0, 0), (1, 1))


def test_by_equal_tokens() -> None:
    found = align([5, 1, 2, 3, 9], [5, 1, 7, 7, 2, 9])
    assert found.pairs == ((0, 0), (1, 1), (2, 4), (4, 5))
    assert (found.positions, found.source_positions) == ((0, 1, 2, 4), (0, 1, 4, 5))
    assert align(np.array([1, 2]), np.array([2]), "tokens").pairs == ((1, 0),)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=25), st.lists(st.integers(0, 4), min_size=1, max_size=25))
def test_the_run_of_equal_tokens_is_the_longest(one: list[int], other: list[int]) -> None:
    n = longest(one, other)
    if not n:
        with pytest.raises(InvalidArgument, match="no position of the prompts pairs by tokens"):
            align(one, other)
        return
    pairs = align(one, other).pairs
    assert (
        len(pairs) == n >= sum(m.size for m in difflib.SequenceMatcher(None, one, other, False).get_matching_blocks())
    )
    assert all(one[i] == other[j] for i, j in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(pairs))


def test_by_roles() -> None:
    own, source = words("When Mary Ann Smith met John"), words("When Bob met Ann")
    roles = {"who": (" Mary Ann Smith", " Bob"), "verb": (" met", 2), "end": (-1, -1)}
    found = align(own, source, roles)
    assert found.names == ("who", "verb", "end")
    assert found.pairs == ((3, 1), (4, 2), (5, 3)), "a text stands for its last token"
    assert align(words("ab cd"), words("cd"), {"half": ("b", "c")}).pairs == ((0, 0),), "the token that ends it"
    assert align([1, 2, 3], [4], {"first": (0, 0), "last": (-1, 0)}).pairs == ((0, 0), (2, 0))


def test_what_does_not_pair() -> None:
    own, source = words("a b a"), words("a c")
    for how, why in (
        ("tokenz", "align by 'tokenz'; allowed: start, end, tokens"),
        ({}, "align by no roles"),
        ({"r": "ab"}, r"role 'r' is 'ab'; write a place in each prompt: {'r': \(3, 5\)}"),
        ({"r": (1,)}, "write a place in each prompt"),
        ({"r": (3, 0)}, "role 'r': position 3 is not in a prompt of 3 tokens"),
        ({"r": (0, -3)}, "position -3 is not in a prompt of 2 tokens"),
        ({"r": ("a", "c")}, "role 'r': 'a' occurs 2 times in 'a b a'; give a position instead"),
        ({"r": ("b", "z")}, "'z' occurs 0 times"),
        ({"r": ("b", "")}, "'' occurs 0 times"),
        ({"r": (0, 0), "s": (-3, 1)}, "two roles have one place"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            align(own, source, how)
    with pytest.raises(InvalidArgument, match="'ana' occurs 2 times"):
        align(words("a banana"), words("ana"), {"r": ("ana", "ana")})
    with pytest.raises(InvalidArgument, match=r"align takes tokens, not str: client\.tokenize"):
        align("a b", "a c")
    with pytest.raises(InvalidArgument, match="needs the tokens' texts"):
        align([1, 2], [3], {"r": ("a", 0)})
    with pytest.raises(InvalidArgument, match="too long to compare"):
        align(range(5000), range(5000))


def test_a_generations_prompt_is_what_pairs(tiny: Client) -> None:
    made = tiny.generate("ab", max_new_tokens=4, ignore_eos=True)
    assert (
        align(made.only, tiny.tokenize("ab"), "end").pairs
        == align(tiny.tokenize("ab"), tiny.tokenize("ab"), "end").pairs
    )


def test_it_is_what_patch_takes(tiny: Client) -> None:
    own, source = "abcdef", "abxxxcdef"
    pairs = align(tiny.tokenize(own), tiny.tokenize(source))
    hook = patch("resid_post.1", from_input="s", inputs="o", **pairs)
    run = tiny.run({"o": own, "s": source}, hooks=hook, capture="resid_post.1")
    ours, theirs = (run.inputs[name]["resid_post.1"] for name in "os")
    assert pairs.pairs == ((0, 0), (1, 1), (2, 2), (3, 6), (4, 7), (5, 8), (6, 9))
    np.testing.assert_array_equal(ours[list(pairs.positions)], theirs[list(pairs.source_positions)])
    assert align(run.inputs["o"], run.inputs["s"]) == pairs
