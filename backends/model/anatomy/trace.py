"""What one forward showed: the tensor that each module read and gave, and each call of the attention function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Arithmetic", "AttentionCall", "ExpertsCall", "Trace"]

Place = tuple[str, str]
"""A module's path, and "input" or "output"."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What is asked of a library's tensors besides + and *."""

    equal: Callable[[Any, Any], bool]
    """Of one shape, and the same to the bit."""
    distance: Callable[[Any, Any], float]
    """Largest difference, relative to the largest value of the second; infinite for other shapes."""
    tolerance: float
    """A distance that still is rounding, in the model's dtype: where the model's own order of sums is not repeated."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One call of the attention function."""

    path: str
    """Of the module that called."""
    q: Any
    """[batch, head, row, d_head]."""
    k: Any
    v: Any
    """[batch, kv_head, row, d_head]."""
    out: Any
    """[batch, row, head, d_head]."""
    window: int | None
    """How many tokens a row sees, as the call says."""
    cache: int | None = None
    """Number of the cache that it read, where a library counts those by themselves."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsCall:
    """One call of a mixture's experts."""

    path: str
    n_experts: int
    at: int
    """When: as `Trace.order` counts."""
    dense: Any
    """[batch, row, expert]: the weights that it was given, 0 for experts that were not chosen."""
    faithful: bool
    """What it gave is the sum of what its experts give one by one, by these weights."""


@dataclass(slots=True, eq=False)
class Trace:
    """Tensors are copies, as modules may write into what they are given. Those of modules called twice are left out."""

    layout: tuple[int, int]
    """(batch, row)."""
    numbers: Arithmetic
    lists: dict[str, int]
    """Path of a list of modules → how many it holds."""
    linear: frozenset[str]
    """Paths of plain linear modules."""
    norms: frozenset[str]
    leaves: frozenset[str]
    """Paths of modules without modules in them."""
    values: dict[Place, Any] = field(default_factory=dict[Place, Any])
    order: dict[Place, int] = field(default_factory=dict[Place, int])
    """When each was seen."""
    calls: list[AttentionCall] = field(default_factory=list[AttentionCall])
    rows: Any = None
    """What the body gives: the head's input."""
    twice: set[Place] = field(default_factory=set[Place])
    flat: set[Place] = field(default_factory=set[Place])
    """Whose rows stand one behind the other, [batch · row, …]; `values` has them as [batch, row, …]."""
    several: set[str] = field(default_factory=set[str])
    """Paths of modules that give more than a tensor."""
    factors: dict[str, tuple[Any, ...]] = field(default_factory=dict[str, "tuple[Any, ...]"])
    """Path of a module in a list → its own tensors of one number."""
    experts: list[ExpertsCall] = field(default_factory=list["ExpertsCall"])
    products: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    """Path of a module that is no plain linear one → what its own linear products gave."""

    _samples: dict[str, tuple[int, dict[Any, list[str]]]] = field(
        default_factory=dict[str, "tuple[int, dict[Any, list[str]]]"]
    )
    """Side → how many values there were, and what `_shown` made of them."""

    def note(self, path: str, side: str, value: Any, *, flat: bool = False) -> None:
        """A module read or gave a tensor, [batch, row, …]; `flat`: which has its rows one behind the other."""
        place = (path, side)
        if flat:
            self.flat.add(place)
        if place in self.values or place in self.twice:
            self.values.pop(place, None)
            self.twice.add(place)
            return
        self.values[place] = value
        self.order[place] = len(self.order)

    def get(self, path: str, side: str) -> Any:
        """The tensor; None where there was none, or more than one."""
        return self.values.get((path, side))

    def below(self, base: str, side: str, like: Any) -> list[tuple[str, Any]]:
        """(path, tensor) of the modules inside one whose tensors have the shape of `like`, in the order they were seen."""
        found = [
            (path, value)
            for (path, at), value in self.values.items()
            if at == side and path.startswith(f"{base}.") and value.shape == like.shape
        ]
        return sorted(found, key=lambda item: self.order[item[0], side])

    def equal(self, a: Any, b: Any) -> bool:
        """The same to the bit."""
        return a is not None and b is not None and a.shape == b.shape and self.numbers.equal(a, b)

    def distance(self, a: Any, b: Any) -> float:
        """Between two tensors, relative to the second; infinite for other shapes."""
        return self.numbers.distance(a, b) if a.shape == b.shape else float("inf")

    def places(self, value: Any, side: str) -> Iterator[str]:
        """Paths of the modules that read, or gave, exactly this tensor."""
        if value is None:
            return iter(())
        shown = self._shown(side)
        alike = shown.get(_sample(value), ())
        return (path for path in alike if self.equal(self.values[path, side], value))

    def _shown(self, side: str) -> dict[Any, list[str]]:
        """The modules by a few numbers of their tensors, in the order of `values`: whose differ are not equal."""
        if self._samples.get(side, (0, {}))[0] != len(self.values):
            found = dict[Any, list[str]]()
            for (path, at), value in self.values.items():
                if at == side:
                    found.setdefault(_sample(value), []).append(path)
            self._samples[side] = len(self.values), found
        return self._samples[side][1]


def _sample(value: Any) -> tuple[Any, ...]:
    flat = value.reshape(-1)
    n = flat.shape[0]
    return (tuple(value.shape), *(flat[i].item() for i in {0, n // 3, n - 1}))
