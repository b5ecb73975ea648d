"""Who calls: in this process, and as a worker is told."""

from __future__ import annotations

from contextvars import Context

import pytest

from probewire.protos.errors import Internal, InvalidArgument
from probewire.server.auth.callers import (
    CALLER,
    METADATA_KEY,
    Caller,
    caller_from_metadata,
    current_caller,
    local_caller,
    new_request_id,
)
from probewire.server.auth.users import LOCAL, User, UserLimits

ADA = User("ada", "viewer", UserLimits(requests=3, tokens_per_minute=7), 1.5, 2.5, "AbCd1234")


def test_nobody_is_let_in_by_default() -> None:
    with pytest.raises(Internal, match="reached without a caller; this is a fault of the server"):
        Context().run(current_caller)


def test_the_caller_is_who_the_api_has_set() -> None:
    caller = Caller(ADA, "req-1", "1.2.3.4")

    def call() -> Caller:
        CALLER.set(caller)
        return current_caller()

    assert Context().run(call) is caller


def test_a_worker_is_told_all_of_it() -> None:
    caller = Caller(ADA, "req-1", "2001:db8::1")
    [(key, data)] = caller.metadata()
    assert key == METADATA_KEY
    assert key.endswith("-bin"), "gRPC sends bytes under such names alone"
    assert caller_from_metadata({"other": b"x", key: data}) == caller


def test_a_worker_that_is_told_nothing_serves_the_local_user() -> None:
    caller = caller_from_metadata({"other": b"x"})
    assert caller.user is LOCAL
    assert caller.request_id.startswith("req-")


@pytest.mark.parametrize("data", [b"{}", b'{"user": "ada", "request_id": "r"}', b'{"root": true}', b"[]"])
def test_what_names_no_user_is_never_taken_for_one(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        caller_from_metadata({METADATA_KEY: data})


def test_request_ids_differ_and_hold_64_random_bits() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id_.startswith("req-") and len(bytes.fromhex(id_[4:])) == 8 for id_ in ids)


def test_each_local_call_is_a_request_of_its_own() -> None:
    first, second = local_caller(), local_caller()
    assert first.user is second.user is LOCAL
    assert first.request_id != second.request_id
