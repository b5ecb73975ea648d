"""Live sessions: a named plan owned by one user, with a revision number, that can change while a generation runs."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidArgument
from .spec import Plan
from .variants.use import VariantUse, checked_uses

__all__ = ["CreateSessionRequest", "Session", "UpdateSessionRequest"]

MAX_NAME = 200


@dataclass(frozen=True, slots=True)
class Session:
    """A plan on the server that generations bound to it follow."""

    id: str
    name: str
    model: str
    """Id of the model that it was made for."""
    plan: Plan
    revision: int
    """1 at first; one more with each update."""
    created_s: float = 0.0
    """Unix time."""
    updated_s: float = 0.0
    """Unix time."""
    variants: tuple[VariantUse, ...] = ()
    """What generations bound to it run with, before the request's own."""


@dataclass(frozen=True, slots=True)
class CreateSessionRequest:
    """Make a session. Its hooks may not name inputs, nor read other inputs, nor store."""

    plan: Plan = Plan()
    model: str = ""
    """Empty: the only model loaded."""
    name: str = ""
    variants: tuple[VariantUse, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", checked_uses(self.variants, "the session"))
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            raise InvalidArgument(
                f"a session's name has at most {MAX_NAME} printable characters, got {self.name[:220]!r}"
            )


@dataclass(frozen=True, slots=True)
class UpdateSessionRequest:
    """Put another plan in a session's place, for generations under way too: from their next step on."""

    id: str
    plan: Plan = Plan()
    revision: int | None = None
    """The revision that this update was made from; it is refused when another came in between. None: whatever it is."""
    variants: tuple[VariantUse, ...] | None = None
    """None: as they are. Deltas act from the next step on; keys and values of earlier tokens stay what they were."""

    def __post_init__(self) -> None:
        if self.variants is not None:
            object.__setattr__(self, "variants", checked_uses(self.variants, "the session"))
