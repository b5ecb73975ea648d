"""Users, keys and the door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.protos.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ProbewireError,
    ResourceExhausted,
    Unauthenticated,
)
from probewire.server.auth import access as access_module
from probewire.server.auth.access import MAX_FAILURES, Access
from probewire.server.auth.callers import Caller, caller_from_metadata
from probewire.server.auth.users import LOCAL, UserLimits, Users
from probewire.server.state.database import State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    yield state
    state.close()


@pytest.fixture
def users(state: State) -> Users:
    return Users(state)


def bearer(key: str) -> str:
    return f"Bearer {key}"


def test_a_key_is_shown_once_and_only_its_hash_is_kept(users: Users, state: State) -> None:
    key = users.add("ada", "researcher", UserLimits(requests=3))
    found = users.by_key(key)
    assert found is not None
    assert (found.name, found.role, found.limits.requests) == ("ada", "researcher", 3)
    for file in state.folder.rglob("*"):
        if file.is_file():
            assert key.encode() not in file.read_bytes()
            assert key.split("_", 2)[2].encode() not in file.read_bytes()
    assert state.folder.stat().st_mode & 0o077 == 0
    assert (state.folder / "state.sqlite").stat().st_mode & 0o077 == 0


def test_revoke_and_rotate_end_the_old_key_at_once_in_other_processes_too(users: Users, state: State) -> None:
    other = Users(State(state.folder))  # the command, while the server runs
    key = users.add("ada", "admin")
    assert other.by_key(key) is not None
    other.revoke("ada")
    assert users.by_key(key) is None
    again = other.rotate("ada")
    assert users.by_key(key) is None
    assert users.by_key(again) is not None
    assert [user.name for user in users.list()] == ["ada"]


@pytest.mark.parametrize("name", ["", "local", "a b", "../x", "x" * 65, "-rf", "é"])
def test_bad_names_are_refused(users: Users, name: str) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        users.add(name, "viewer")


def test_a_name_is_taken_once(users: Users) -> None:
    users.add("ada", "viewer")
    with pytest.raises(FailedPrecondition, match="rotate"):
        users.add("ada", "viewer")
    with pytest.raises(NotFound, match="ada"):
        users.revoke("bob")


def test_without_users_everybody_is_the_local_one(users: Users) -> None:
    assert Access(users).enter("", "1.2.3.4").user is LOCAL
    assert Access(users).enter("Bearer sk-anything", "1.2.3.4").user is LOCAL, "the openai package always sends a key"


def test_with_users_a_key_is_needed_and_the_message_says_how(users: Users) -> None:
    access = Access(users)
    key = users.add("ada", "researcher")
    assert access.enter(bearer(key), "1.2.3.4").user.name == "ada"
    assert access.enter(f"bearer {key} ", "1.2.3.4").user.name == "ada"
    for header in ("", key, bearer("x"), bearer(key[:-1]), bearer(key + "x"), f"Basic {key}", bearer("pw_" + "é" * 50)):
        with pytest.raises(Unauthenticated, match="pw_"):
            access.enter(header, "1.2.3.4")
    users.revoke("ada")
    with pytest.raises(Unauthenticated):
        access.enter(bearer(key), "1.2.3.4")


def test_guessing_is_slowed_down_for_the_address_and_a_good_key_still_passes(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, key = Access(users), users.add("ada", "viewer")

    def guess(peer: str) -> ProbewireError:
        with pytest.raises(ProbewireError) as caught:
            access.enter(bearer("pw_AAAAAAAA_" + "x" * 43), peer)
        return caught.value

    for _ in range(MAX_FAILURES):
        assert isinstance(guess("6.6.6.6"), Unauthenticated)
    refused = guess("6.6.6.6")
    assert isinstance(refused, ResourceExhausted)
    assert refused.retry_after_s
    assert isinstance(guess("7.7.7.7"), Unauthenticated)
    assert access.enter(bearer(key), "6.6.6.6").user.name == "ada"
    monkeypatch.setattr(access_module, "FAILURE_WINDOW_S", 0.0)
    assert isinstance(guess("6.6.6.6"), Unauthenticated)


def test_another_address_of_the_same_network_is_no_fresh_start(users: Users) -> None:
    """Whoever has one IPv6 address has 2⁶⁴."""
    access = Access(users)
    users.add("ada", "viewer")
    for n in range(MAX_FAILURES):
        with pytest.raises(Unauthenticated):
            access.enter(bearer("pw_x"), f"2001:db8::{n:x}")
    with pytest.raises(ResourceExhausted, match="2001:db8::/64"):
        access.enter(bearer("pw_x"), "2001:db8::ffff:ffff:ffff:ffff")
    with pytest.raises(Unauthenticated):
        access.enter(bearer("pw_x"), "2001:db8:0:1::1")


def test_a_caller_survives_the_way_to_the_worker(users: Users) -> None:
    users.add("ada", "researcher", UserLimits(store_bytes=7))
    caller = Caller(users.get("ada"), "req-1", "1.2.3.4")
    assert caller_from_metadata(dict(caller.metadata())) == caller
    assert caller_from_metadata({}).user == LOCAL


def test_a_folder_of_a_newer_version_is_refused(state: State) -> None:
    with state.transaction() as database:
        database.execute("PRAGMA user_version=99")
    state.close()
    with pytest.raises(FailedPrecondition, match="newer"):
        State(state.folder)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="--state"):
        State(tmp_path / "file")


def test_role_and_limits_change_and_the_key_stays(users: Users) -> None:
    key = users.add("ada", "viewer", UserLimits(requests=3, sessions=2))
    users.change("ada", role="researcher", limits={"requests": 9})
    found = users.by_key(key)
    assert found is not None
    assert (found.role, found.limits.requests, found.limits.sessions) == ("researcher", 9, 2)
    with pytest.raises(InvalidArgument, match="sessions must be 0"):
        users.change("ada", limits={"sessions": -1})
