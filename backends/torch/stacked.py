"""The library's caches of several sequences as one, whatever they are made of, and each one's own again.

Nothing is known of a cache but what three forwards show: along which axis its tensors grow with the batch, along which
with the positions, and which of its numbers count those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import pad
from transformers import PreTrainedConfig

__all__ = ["Parts", "Stacks", "parts_of"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor or a number was."""

    index: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a tensor or a number is."""

    batch: int | None = None
    """Axis of a tensor; None for what is the same for all."""
    position: int | None = None
    """Axis of a tensor that grows; 0 of a number that does."""
    more: int = 0
    """By which its size, or the number, is larger than the count of positions."""


@dataclass(slots=True)
class Parts:
    """A cache taken to pieces."""

    shape: Any
    """Itself, with places in place of tensors and numbers."""
    leaves: list[Any]
    marks: list[Any]
    """All else that decides what it does: flags, names, what is not there yet."""

    def whole(self, leaves: SequenceOf[Any]) -> Any:
        """One with other tensors and numbers."""
        return _copied(self.shape, lambda leaf: leaves[leaf.index] if isinstance(leaf, _Place) else leaf, {}, [])


def parts_of(cache: Any) -> Parts:
    """Take a cache to pieces; it is left as it is."""
    leaves, marks = list[Any](), list[Any]()

    def place(leaf: Any) -> _Place:
        leaves.append(leaf)
        return _Place(len(leaves) - 1)

    return Parts(_copied(cache, place, {}, marks), leaves, marks)


class Stacks:
    """How the caches of one model are stacked."""

    def __init__(self, few: Any, more: Any, two: Any, n_few: int, n_more: int) -> None:
        """`few`, `more`: caches of one sequence after so many positions; `two`: of two sequences after the few.

        Raises ValueError for a cache that shows no such order.
        """
        a, b, c = (parts_of(cache) for cache in (few, more, two))
        if not (a.marks == b.marks == c.marks and len(a.leaves) == len(b.leaves) == len(c.leaves)):
            raise ValueError("what its cache is made of hangs on how much has been read")
        self._kinds = [_kind(*found, n_few, n_more) for found in zip(a.leaves, b.leaves, c.leaves, strict=True)]
        self.grows = any(kind.batch is not None and kind.position is not None for kind in self._kinds)
        """Whether anything is kept by position, so that shorter sequences must be padded."""

    def stack(self, caches: list[Any], lengths: SequenceOf[int]) -> Any:
        """One cache; shorter sequences are padded with zeros on the left. The list is emptied, so that what nobody else
        holds is freed on the way. Raises ValueError, and leaves it, where they are not alike."""
        taken = [parts_of(cache) for cache in caches]
        first = taken[0]
        if any(one.marks != first.marks or len(one.leaves) != len(self._kinds) for one in taken):
            raise ValueError("caches of different make")
        for i, kind in enumerate(self._kinds):
            _check(kind, [one.leaves[i] for one in taken], lengths)
        caches.clear()
        made: list[Any] = []
        for i, kind in enumerate(self._kinds):
            leaves = [one.leaves[i] for one in taken]
            for one in taken:
                one.leaves[i] = None
            made.append(_joined(kind, leaves, max(lengths)))
        return first.whole(made)

    def unstack(self, taken: Parts, lengths: SequenceOf[int]) -> list[Any]:
        """Of a stacked cache taken to pieces, each sequence's own, of so many positions; the pieces are used up."""
        own: list[list[Any]] = [[] for _ in lengths]
        for i, kind in enumerate(self._kinds):
            leaf, taken.leaves[i] = taken.leaves[i], None
            for at, n in enumerate(lengths):
                own[at].append(_own(kind, leaf, at, n))
        return [taken.whole(leaves) for leaves in own]


def _kind(few: Any, more: Any, two: Any, n_few: int, n_more: int) -> _Kind:
    if not isinstance(few, torch.Tensor):
        if few == two and few == more:
            return _Kind()
        if few == two and more - few == n_more - n_few:
            return _Kind(position=0, more=few - n_few)
        raise ValueError(f"its cache has a number that was {few}, {more} and {two}")
    shapes = tuple(few.shape), tuple(more.shape), tuple(two.shape)
    if len({len(shape) for shape in shapes}) == 1:
        grown = [axis for axis in range(few.ndim) if shapes[1][axis] != shapes[0][axis]]
        doubled = [axis for axis in range(few.ndim) if shapes[2][axis] != shapes[0][axis]]
        if not grown and not doubled and torch.equal(few, more) and torch.equal(few, two):
            return _Kind()
        if len(doubled) == 1 and shapes[0][doubled[0]] == 1 and len(grown) <= 1 and grown != doubled:
            if not grown:
                return _Kind(batch=doubled[0])
            if shapes[1][grown[0]] - shapes[0][grown[0]] == n_more - n_few:
                return _Kind(doubled[0], grown[0], shapes[0][grown[0]] - n_few)
    raise ValueError(f"its cache has a tensor of {shapes[0]}, {shapes[1]} with more positions and {shapes[2]} for two")


def _check(kind: _Kind, leaves: SequenceOf[Any], lengths: SequenceOf[int]) -> None:
    """Raise ValueError where these are not what they were seen to be."""
    first = leaves[0]
    if not isinstance(first, torch.Tensor):
        expected = [first if kind.position is None else n + kind.more for n in lengths]
        alike = list(leaves) == expected
    elif kind.batch is None:
        alike = all(isinstance(leaf, torch.Tensor) and torch.equal(leaf, first) for leaf in leaves)
    else:
        alike = all(isinstance(leaf, torch.Tensor) and _rest(kind, leaf) == _rest(kind, first) for leaf in leaves)
        if kind.position is not None and alike:
            alike = all(leaf.shape[kind.position] <= n + kind.more for leaf, n in zip(leaves, lengths, strict=True))
    if not alike:
        raise ValueError("caches of different make")


def _rest(kind: _Kind, leaf: torch.Tensor) -> tuple[Any, ...]:
    """All that must be equal in tensors that are joined."""
    shape = tuple(n for axis, n in enumerate(leaf.shape) if axis != kind.position)
    return leaf.ndim, shape, leaf.dtype, leaf.device


def _joined(kind: _Kind, leaves: list[Any], longest: int) -> Any:
    if not isinstance(leaves[0], torch.Tensor):
        return leaves[0] if kind.position is None else longest + kind.more
    if kind.batch is None:
        return leaves[0]
    if kind.position is not None:
        size = max(leaf.shape[kind.position] for leaf in leaves)
        behind = leaves[0].ndim - 1 - kind.position
        leaves = [pad(leaf, (0, 0) * behind + (size - leaf.shape[kind.position], 0)) for leaf in leaves]
    return torch.cat(leaves, dim=kind.batch)


def _own(kind: _Kind, leaf: Any, at: int, n: int) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf if kind.position is None else n + kind.more
    if kind.batch is None:
        return leaf
    own = leaf.narrow(kind.batch, at, 1)
    if kind.position is not None:
        size = min(leaf.shape[kind.position], n + kind.more)
        own = own.narrow(kind.position, leaf.shape[kind.position] - size, size)
    return own.clone()


def _copied(value: Any, change: Callable[[Any], Any], seen: dict[int, Any], marks: list[Any]) -> Any:
    """The same structure with other leaves. `seen`: what was made of each object, which lives as long as the structure."""
    if type(value) is int:
        return change(value)
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, (torch.Tensor, _Place)):
        seen[id(value)] = made = change(value)
        return made
    at = id(cast("object", value))
    made: Any
    if isinstance(value, dict):
        made = seen[at] = dict[Any, Any]()
        for key, part in cast("dict[Any, Any]", value).items():
            made[key] = _copied(part, change, seen, marks)
    elif isinstance(value, (list, tuple)):
        parts = [_copied(part, change, seen, marks) for part in cast("Iterable[Any]", value)]
        seen[at] = made = parts if isinstance(value, list) else tuple(parts)
    elif _is_part(value):
        seen[at] = made = object.__new__(cast("type[Any]", type(value)))
        for name, part in cast("dict[str, Any]", vars(value)).items():
            made.__dict__[name] = _copied(part, change, seen, marks)
    else:
        marks.append(value)
        return value
    return made


def _is_part(value: Any) -> bool:
    """Whether an object is one of the library's that a cache is made of."""
    if isinstance(value, (type, nn.Module, PreTrainedConfig)) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.startswith("transformers.") and not callable(value)
