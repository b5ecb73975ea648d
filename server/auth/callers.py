"""Who calls, and under which request id: set by the APIs at the door, carried on to the worker as call metadata."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import orjson

from ...protos.errors import Internal
from ...protos.wire.codec import from_json, to_json
from .users import LOCAL, User

__all__ = [
    "CALLER",
    "METADATA_KEY",
    "Caller",
    "caller_from_metadata",
    "current_caller",
    "local_caller",
    "new_request_id",
]

METADATA_KEY = "probewire-caller-bin"
"""From the gateway to its workers, whose sockets nobody else can open."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One user in one call."""

    user: User
    request_id: str
    peer: str = ""
    """Address that the call came from."""

    def metadata(self) -> tuple[tuple[str, bytes], ...]:
        """As a worker is told."""
        return ((METADATA_KEY, orjson.dumps(to_json(self))),)


CALLER: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """Who calls. Raises Internal when no API has said so: what nobody was let in for is not carried out."""
    try:
        return CALLER.get()
    except LookupError:
        raise Internal("an operation was reached without a caller; this is a fault of the server") from None


def local_caller() -> Caller:
    """A call of whoever has the server to themselves."""
    return Caller(LOCAL, new_request_id())


def new_request_id() -> str:
    """An id that cannot be guessed."""
    return f"req-{secrets.token_hex(8)}"


def caller_from_metadata(metadata: Mapping[str, bytes]) -> Caller:
    """Who a call at a worker is from; without a word of it, whoever has the worker to themselves."""
    data = metadata.get(METADATA_KEY)
    return local_caller() if data is None else from_json(Caller, orjson.loads(data))
