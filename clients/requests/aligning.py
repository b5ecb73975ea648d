"""Which position of one prompt stands for which of another, for prompts of unequal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.model import Tokenized
from ..results.input_result import InputResult

__all__ = ["Alignment", "How", "Place", "align"]

Place = int | str
"""A position (negative: from that prompt's own end), or a text that occurs once: the token that ends it."""
How = Literal["start", "end", "tokens"] | Mapping[str, tuple[Place, Place]]
"""How two prompts pair. start, end: token by token from there, as far as the shorter one goes. tokens: the longest run of
equal tokens in equal order. A dict: role → (place in the one that runs, place in the other)."""

MAX_CELLS = 1 << 24
"""Of the table that compares two prompts token by token: 4,096 tokens each."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Paired positions: `patch(site, from_input="clean", **align(corrupt, clean))`."""

    positions: tuple[int, ...]
    """In the prompt that runs, counted from its start."""
    source_positions: tuple[int, ...]
    """In the other: what comes to each of them."""
    names: tuple[str, ...] = ()
    """Roles, where the pairs have them."""

    def keys(self) -> tuple[str, str]:
        """The two arguments of `patch` that it stands for."""
        return ("positions", "source_positions")

    def __getitem__(self, key: str) -> tuple[int, ...]:
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(position, source position) each."""
        return tuple(zip(self.positions, self.source_positions, strict=True))

    def __len__(self) -> int:
        return len(self.positions)


def align(own: Any, source: Any, how: How = "tokens") -> Alignment:
    """Pairs of positions of two prompts, in the order of the one that runs (`own`).

    Each prompt as `client.tokenize` gives it, an input's result, or a sequence of token ids or texts. Raises
    InvalidArgument when nothing pairs, and for a role whose place is not in its prompt.
    """
    if isinstance(how, Mapping):
        return _by_roles(own, source, how)
    if how not in ("start", "end", "tokens"):
        raise InvalidArgument(f"align by {how!r}; allowed: start, end, tokens, or {{role: (place, place)}}")
    ours, theirs = _ids(own), _ids(source)
    n, m = len(ours), len(theirs)
    if how == "tokens":
        pairs = _common(ours, theirs)
    else:
        shift = (n, m) if how == "end" else (0, 0)
        steps = range(-min(n, m), 0) if how == "end" else range(min(n, m))
        pairs = [(step + shift[0], step + shift[1]) for step in steps]
    if not pairs:
        raise InvalidArgument(f"no position of the prompts pairs by {how} ({n} and {m} tokens); name roles")
    return Alignment(tuple(one for one, _ in pairs), tuple(other for _, other in pairs))


def _by_roles(own: Any, source: Any, roles: Mapping[str, tuple[Place, Place]]) -> Alignment:
    if not roles:
        raise InvalidArgument("align by no roles; name at least one, {role: (place in one prompt, place in the other)}")
    places: list[tuple[int, int]] = []
    for role, found in roles.items():
        if isinstance(found, str) or not isinstance(found, Sequence) or len(found) != 2:  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks
            raise InvalidArgument(f"role {role!r} is {found!r}; write a place in each prompt: {{{role!r}: (3, 5)}}")
        places.append((_place(own, found[0], role), _place(source, found[1], role)))
    if len({one for one, _ in places}) != len(places):
        raise InvalidArgument(
            f"two roles have one place in the prompt that runs: {dict(zip(roles, places, strict=True))}"
        )
    return Alignment(tuple(one for one, _ in places), tuple(other for _, other in places), tuple(roles))


def _place(prompt: Any, place: Place, role: str) -> int:
    n = len(_ids(prompt))
    if not isinstance(place, str):
        if not -n <= place < n:
            raise InvalidArgument(f"role {role!r}: position {place} is not in a prompt of {n} tokens")
        return int(place) % n
    tokens = _texts(prompt)
    text = "".join(tokens)
    times = sum(text.startswith(place, at) for at in range(len(text))) if place else 0  # in itself too: "ana" in banana
    if times != 1:
        raise InvalidArgument(f"role {role!r}: {place!r} occurs {times} times in {text!r}; give a position instead")
    end, at = text.index(place) + len(place), 0
    for position, token in enumerate(tokens):
        at += len(token)
        if at >= end:
            return position
    raise AssertionError("the text lies within its tokens")


def _ids(prompt: Any) -> Sequence[Any]:
    if isinstance(prompt, InputResult):
        return prompt.prompt_ids
    if isinstance(prompt, Tokenized):
        return prompt.token_ids
    if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
        raise InvalidArgument(f"align takes tokens, not {type(prompt).__name__}: client.tokenize(prompt)")
    return cast("Sequence[Any]", prompt.tolist() if isinstance(prompt, np.ndarray) else prompt)


def _texts(prompt: Any) -> Sequence[str]:
    if isinstance(prompt, InputResult):
        return prompt.prompt_tokens
    tokens = prompt.tokens if isinstance(prompt, Tokenized) else _ids(prompt)
    if not all(isinstance(token, str) for token in tokens):
        raise InvalidArgument("a role named by a text needs the tokens' texts: client.tokenize(prompt)")
    return tokens


def _common(ours: Sequence[Any], theirs: Sequence[Any]) -> list[tuple[int, int]]:
    """The longest common subsequence, as pairs of places; the latest of several that are as long."""
    n, m = len(ours), len(theirs)
    if n * m > MAX_CELLS:
        raise InvalidArgument(f"prompts of {n:,} and {m:,} tokens are too long to compare; align them by start or end")
    numbers = {token: number for number, token in enumerate(dict.fromkeys((*ours, *theirs)))}
    row, column = (np.array([numbers[token] for token in tokens], dtype=np.int64) for tokens in (ours, theirs))
    lengths = np.zeros((n + 1, m + 1), dtype=np.int32)  # [i, j]: of the first i and the first j tokens
    for i in range(n):
        longer = np.where(column == row[i], lengths[i, :-1] + 1, lengths[i, 1:])
        lengths[i + 1, 1:] = np.maximum.accumulate(longer)
    pairs: list[tuple[int, int]] = []
    i, j = n, m
    while i and j:
        if ours[i - 1] == theirs[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif lengths[i - 1, j] >= lengths[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
