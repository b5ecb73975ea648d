"""Conditions: when a hook acts on a row, by what a coordinate of an earlier site is. Alone, all of several, any of several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .edits import float_tensor
from .errors import InvalidArgument
from .numbers import finite
from .sites import Site
from .tensors import Tensor

__all__ = ["MAX_CONDITIONS", "AllOf", "AnyOf", "Condition", "When", "bounded", "one_of"]

MAX_CONDITIONS = 8
MAX_NAME = 500
"""Letters of a site's name, which is remembered once parsed, and of a hook's id, which comes back with each tensor."""


def bounded(name: str, what: str) -> str:
    """The name; raises InvalidArgument for one that is too long to keep."""
    if isinstance(name, str) and len(name) > MAX_NAME:  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
        raise InvalidArgument(f"{what} has at most {MAX_NAME} characters, got {len(name):,}: {name[:60]!r}…")
    return name


def one_of(value: object, allowed: tuple[object, ...], what: str) -> None:
    """Raise InvalidArgument for a value that is none of the allowed."""
    if value not in allowed:
        raise InvalidArgument(f"{what} {value!r}; allowed: {', '.join(str(a) for a in allowed if a is not None)}")


@dataclass(frozen=True, slots=True)
class Condition:
    """A row takes part only where a coordinate at `site` compares true with `threshold`.

    The coordinate is a unit (of one head, at head sites) or the dot product with a direction. `site` is the hook's
    own or an earlier one; values are read after earlier edits. Without `latch` each row decides for itself. With it,
    the prompt decides once (its last row, or the mean over its rows) and the answer holds for generated tokens.
    """

    wire_plain: ClassVar[bool] = True
    """Written without its name where it may also be a combination."""

    threshold: float
    site: str = ""
    """Empty: the hook's own site, whatever its layer."""
    op: Literal["gt", "ge", "lt", "le"] = "gt"
    unit: int | None = None
    head: int | None = None
    direction: Tensor | None = None
    """[width]."""
    latch: Literal["last", "mean"] | None = None
    normalise: bool = False
    """Divide the coordinate by ‖row‖·‖direction‖ (a unit's by ‖row‖): a cosine, −1 … 1; 0 of a row of zeros."""

    def __post_init__(self) -> None:
        if self.site:
            object.__setattr__(self, "site", Site.canonical(bounded(self.site, "when.site")))
        object.__setattr__(self, "threshold", finite(self.threshold, "when.threshold"))
        one_of(self.op, ("gt", "ge", "lt", "le"), "when.op")
        one_of(self.latch, (None, "last", "mean"), "when.latch")
        if (self.unit is None) == (self.direction is None):
            raise InvalidArgument("when needs exactly one of unit and direction")
        for name in ("unit", "head"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise InvalidArgument(f"when.{name} must be an integer of 0 or more, got {value!r}")
        if self.direction is not None:
            object.__setattr__(self, "direction", float_tensor(self.direction, "when.direction", 1))
        if self.normalise and self.direction is not None and not self.direction.floats().any():
            raise InvalidArgument("when.normalise divides by the norm of a direction that is zero; send a direction")

    @property
    def parts(self) -> tuple[Condition, ...]:
        """Itself: combinations have several."""
        return (self,)

    @property
    def latched(self) -> bool:
        """Whether the prompt decides, so that only generated tokens can be reached."""
        return self.latch is not None


@dataclass(frozen=True, slots=True)
class _Several:
    """Conditions that decide together, each at its own site and with its own latch."""

    conditions: tuple[Condition, ...]
    """1 to 8. Where one of them latches, generated tokens alone are reached."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", tuple(self.conditions))
        if not 1 <= len(self.conditions) <= MAX_CONDITIONS:
            raise InvalidArgument(f"when combines 1 to {MAX_CONDITIONS} conditions, got {len(self.conditions)}")
        for item in self.conditions:
            if not isinstance(item, Condition):  # pyright: ignore[reportUnnecessaryIsInstance] - Python can hold anything
                raise InvalidArgument(
                    f"when combines conditions, one level deep, got a {type(item).__name__}; write all its conditions in one"
                )

    @property
    def parts(self) -> tuple[Condition, ...]:
        """The conditions."""
        return self.conditions

    @property
    def latched(self) -> bool:
        """Whether the prompt decides any of them, so that only generated tokens can be reached."""
        return any(one.latched for one in self.conditions)


@dataclass(frozen=True, slots=True)
class AllOf(_Several):
    """Every one of the conditions holds."""


@dataclass(frozen=True, slots=True)
class AnyOf(_Several):
    """At least one of the conditions holds."""


When = Condition | AllOf | AnyOf
