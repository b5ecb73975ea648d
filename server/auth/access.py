"""The door: whose key a call carries, on every API alike."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network

from ...protos.errors import ResourceExhausted, Unauthenticated
from ...protos.hosts import address_of
from .callers import Caller, new_request_id
from .users import LOCAL, Users

__all__ = ["Access"]

MAX_FAILURES = 20
"""Wrong keys from one address within `FAILURE_WINDOW_S`; a good key passes all the same, as others may share the address."""
FAILURE_WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
"""Addresses whose failures are remembered."""
NETWORK_BITS = 64
"""Of an IPv6 address: the rest is its caller's to choose, for each guess another."""


class Access:
    """Lets callers in. With no users at all, everybody is the local one: `cli/serve/command.py` sees to it that only this
    machine can reach such a box, unless the operator insisted. Used by the event loop alone.
    """

    def __init__(self, users: Users | None = None, refused: Callable[[str, str], None] = lambda api, key: None) -> None:
        """`refused` is told of everybody who is not let in: on which API (grpc, http), and with which key (none,
        wrong, or slowed: wrong, from an address that has to wait).
        """
        self._users, self._refused = users, refused
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def enter(self, authorization: str, peer: str, request_id: str = "", *, api: str = "http") -> Caller:
        """The caller at the address `peer`, behind an `authorization` header ("Bearer pw_…"; empty: none). `API`: http, grpc.

        Raises Unauthenticated without a good key, ResourceExhausted after too many bad ones from the same address.
        """
        request_id = request_id or new_request_id()
        if self._users is None or not self._users.any:
            return Caller(LOCAL, request_id, peer)
        scheme, _, key = authorization.partition(" ")
        if not authorization:
            self._refused(api, "none")
            raise Unauthenticated(
                "this box has users: send your key as `authorization: Bearer pw_…` (Client(…, api_key=…)); "
                "whoever runs the box makes one with `probewire users add NAME`"
            )
        user = self._users.by_key(key.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            place = _place(peer)
            self._check_failures(place, api)
            self._note_failure(place)
            self._refused(api, "wrong")
            raise Unauthenticated(
                "the key is not valid here: it was mistyped, revoked or replaced; it is sent as "
                "`authorization: Bearer pw_…`"
            )
        return Caller(user, request_id, peer)

    def still_in(self, caller: Caller) -> bool:
        """Whether the caller's key is good even now."""
        if caller.user is LOCAL or self._users is None:
            return True
        return self._users.is_current(caller.user)

    def _check_failures(self, place: str, api: str) -> None:
        recent = [at for at in self._failures.get(place, ()) if at > time.monotonic() - FAILURE_WINDOW_S]
        if len(recent) >= MAX_FAILURES:
            self._refused(api, "slowed")
            raise ResourceExhausted(
                f"{len(recent)} keys from {place} were wrong within the last minute; wait before the next",
                retry_after_s=max(1.0, recent[0] + FAILURE_WINDOW_S - time.monotonic()),
            )
        if not recent:
            self._failures.pop(place, None)

    def _note_failure(self, place: str) -> None:
        self._failures.setdefault(place, []).append(time.monotonic())
        del self._failures[place][:-MAX_FAILURES]
        self._failures.move_to_end(place)
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)


def _place(peer: str) -> str:
    address = address_of(peer)
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((address, NETWORK_BITS), strict=False))
    return peer
