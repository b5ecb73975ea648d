"""Live sessions: a named plan owned by one user, with a revision number, that can change while a generation runs."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidArgument
from .spec import Plan

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


@dataclass(frozen=True, slots=True)
class CreateSessionRequest:
    """Make a session. Its hooks may not name inputs, nor read other inputs, nor store."""

    plan: Plan = Plan()
    model: str = ""
    """Empty: the only model loaded."""
    name: str = ""

    def __post_init__(self) -> None:
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
