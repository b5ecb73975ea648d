"""The door: who is let in, what the refused are told, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.protos.errors import ResourceExhausted, Unauthenticated
from probewire.server.auth import access as module
from probewire.server.auth.access import MAX_FAILURES, Access
from probewire.server.auth.callers import Caller
from probewire.server.auth.users import LOCAL, Users
from probewire.server.state.database import State


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    state = State(tmp_path / "state")
    yield Users(state)
    state.close()


class Clock:
    """Stands where the module's `time` is."""

    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Door:
    """A door with one user, ada, behind it, and what it has said of those who were refused."""

    def __init__(self, users: Users) -> None:
        self.key = users.add("ada", "researcher")
        self.refusals: list[tuple[str, str]] = []
        self.access = Access(users, lambda api, key: self.refusals.append((api, key)))

    def guess(self, peer: str, header: str = "Bearer pw_wrong") -> type[Exception]:
        with pytest.raises((Unauthenticated, ResourceExhausted)) as caught:
            self.access.enter(header, peer)
        return caught.type

    def fill(self, peer: str) -> None:
        """As many wrong keys as an address has before it must wait."""
        for _ in range(MAX_FAILURES):
            assert self.guess(peer) is Unauthenticated


@pytest.fixture
def door(users: Users) -> Door:
    return Door(users)


def test_a_caller_has_the_request_id_that_was_given_or_a_fresh_one(door: Door) -> None:
    caller = door.access.enter(f"Bearer {door.key}", "1.2.3.4", "req-7")
    assert (caller.user.name, caller.request_id, caller.peer) == ("ada", "req-7", "1.2.3.4")
    ids = {door.access.enter(f"Bearer {door.key}", "1.2.3.4").request_id for _ in range(3)}
    assert len(ids) == 3


def test_a_server_without_users_lets_everybody_in_as_the_local_one(users: Users) -> None:
    for access in (Access(), Access(users)):
        caller = access.enter("Basic nonsense", "9.9.9.9", "req-1")
        assert caller == Caller(LOCAL, "req-1", "9.9.9.9")


def test_the_first_user_closes_an_open_door(users: Users) -> None:
    access = Access(users)
    access.enter("", "1.2.3.4")
    users.add("ada", "viewer")
    with pytest.raises(Unauthenticated, match="this box has users: send your key"):
        access.enter("", "1.2.3.4")


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "pw_x", "Token {key}", "Bearer{key}", "Bearer {key} more"])
def test_what_is_no_bearer_key_is_a_wrong_one(door: Door, header: str) -> None:
    with pytest.raises(Unauthenticated, match="the key is not valid here: it was mistyped, revoked or replaced"):
        door.access.enter(header.format(key=door.key), "1.2.3.4")
    assert door.refusals == [("http", "wrong")]


def test_every_refusal_is_told_of_with_its_api_and_kind(door: Door) -> None:
    for api in ("http", "grpc"):
        with pytest.raises(Unauthenticated):
            door.access.enter("", "1.2.3.4", api=api)
    door.fill("6.6.6.6")
    assert door.guess("6.6.6.6") is ResourceExhausted
    door.access.enter(f"Bearer {door.key}", "6.6.6.6")
    assert door.refusals == [
        ("http", "none"),
        ("grpc", "none"),
        *[("http", "wrong")] * MAX_FAILURES,
        ("http", "slowed"),
    ]


def test_who_sends_no_key_is_not_guessing(door: Door) -> None:
    for _ in range(MAX_FAILURES + 1):
        assert door.guess("6.6.6.6", header="") is Unauthenticated


def test_a_slowed_address_is_told_how_long_to_wait(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    door.fill("6.6.6.6")
    clock.now_s += 20.0
    with pytest.raises(ResourceExhausted, match=r"20 keys from 6\.6\.6\.6 were wrong within the last minute") as caught:
        door.access.enter("Bearer pw_wrong", "6.6.6.6")
    assert caught.value.retry_after_s == 40.0
    clock.now_s += 40.0
    assert door.guess("6.6.6.6") is Unauthenticated, "the window is over"


def test_waiting_is_never_said_to_be_less_than_a_second(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    door.fill("6.6.6.6")
    clock.now_s += 59.9
    with pytest.raises(ResourceExhausted) as caught:
        door.access.enter("Bearer pw_wrong", "6.6.6.6")
    assert caught.value.retry_after_s == 1.0


def test_guesses_while_slowed_do_not_prolong_the_wait(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    door.fill("6.6.6.6")
    for _ in range(5):
        clock.now_s += 10.0
        assert door.guess("6.6.6.6") is ResourceExhausted
    clock.now_s += 10.0
    assert door.guess("6.6.6.6") is Unauthenticated


def test_only_so_many_addresses_are_remembered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 2)
    door.fill("6.6.6.1")
    door.fill("6.6.6.2")
    assert door.guess("6.6.6.3") is Unauthenticated
    assert door.guess("6.6.6.2") is ResourceExhausted
    assert door.guess("6.6.6.1") is Unauthenticated, "the longest quiet is forgotten"


def test_an_ipv6_neighbour_is_the_same_place_and_the_loopback_is_its_own(door: Door) -> None:
    door.fill("2001:db8::1")
    assert door.guess("2001:db8::2") is ResourceExhausted
    assert door.guess("2001:db8:0:1::2") is Unauthenticated
    door.fill("::1")
    assert door.guess("::1") is ResourceExhausted
    assert door.guess("::2") is Unauthenticated, "not one place with the loopback"


def test_a_caller_is_in_until_his_key_ends(door: Door, users: Users) -> None:
    caller = door.access.enter(f"Bearer {door.key}", "1.2.3.4")
    assert door.access.still_in(caller)
    users.rotate("ada")
    assert not door.access.still_in(caller)


def test_a_revoked_user_is_out(door: Door, users: Users) -> None:
    caller = door.access.enter(f"Bearer {door.key}", "1.2.3.4")
    users.revoke("ada")
    assert not door.access.still_in(caller)


def test_the_local_user_stays_in_whoever_is_added(users: Users) -> None:
    caller = Access(users).enter("", "127.0.0.1")
    users.add("ada", "viewer")
    assert Access(users).still_in(caller)
    assert Access().still_in(caller)
