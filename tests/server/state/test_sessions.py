"""Live sessions in the state database: revisions, owners, and how many one may have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.protos.edits import Add, Scale
from probewire.protos.errors import FailedPrecondition, NotFound, ResourceExhausted
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.tensors import Tensor
from probewire.server.state.database import State
from probewire.server.state.sessions import SessionStore

VECTOR = Tensor.of(np.array([1.0, -2.5], dtype=np.float32))
PLAN = Plan((Hook("resid_post.1", edit=Add(VECTOR), id="é"), Hook("z.*", capture=Capture())))
QUIETER = Plan((Hook("mlp_out.1", edit=Scale(0.5)),))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    yield state
    state.close()


@pytest.fixture
def store(state: State) -> SessionStore:
    return SessionStore(state)


def made(store: SessionStore, owner: str = "ada", name: str = "mine", most: int = 0) -> Session:
    with store.drafted(owner, CreateSessionRequest(PLAN, "asked for", name), "m", most) as session:
        store.add(owner, session)
    return session


def test_a_new_session_is_of_revision_one_and_of_the_model_that_was_found(store: SessionStore) -> None:
    session = made(store)
    assert (session.name, session.model, session.plan, session.revision) == ("mine", "m", PLAN, 1)
    assert session.id.startswith("ses-")
    assert session.created_s == session.updated_s > 0


def test_what_was_kept_comes_back_after_a_restart(store: SessionStore, state: State) -> None:
    session = made(store)
    state.close()
    again = State(state.folder)
    assert SessionStore(again).get("ada", session.id) == session
    again.close()


def test_a_draft_is_nowhere_until_it_is_added(store: SessionStore) -> None:
    with store.drafted("ada", CreateSessionRequest(), "m", 0) as session:
        assert store.list("ada") == []
        with pytest.raises(NotFound):
            store.get("ada", session.id)


def test_sessions_are_listed_oldest_first_and_each_their_owners(store: SessionStore) -> None:
    names = ["c", "a", "b"]
    for name in names:
        made(store, name=name)
    made(store, "bob", "other")
    assert [session.name for session in store.list("ada")] == names
    assert [session.name for session in store.list("bob")] == ["other"]
    assert store.list("eve") == []


def test_another_owners_session_does_not_exist(store: SessionStore) -> None:
    session = made(store)
    with pytest.raises(NotFound) as absent:
        store.get("bob", "ses-none")
    for call in (
        lambda: store.get("bob", session.id),
        lambda: store.delete("bob", session.id),
        lambda: store.revised("bob", UpdateSessionRequest(session.id)),
        lambda: store.replace("bob", session),
    ):
        with pytest.raises(NotFound) as caught:
            call()
        assert caught.value.message == absent.value.message.replace("ses-none", session.id)
    assert store.get("ada", session.id) == session


def test_an_update_is_the_next_revision_with_another_plan(store: SessionStore) -> None:
    session = made(store)
    revised = store.revised("ada", UpdateSessionRequest(session.id, QUIETER, revision=1))
    assert store.get("ada", session.id) == session, "not before it is put in its place"
    store.replace("ada", revised)
    found = store.get("ada", session.id)
    assert (found.plan, found.revision, found.created_s) == (QUIETER, 2, session.created_s)
    assert (found.name, found.model) == (session.name, session.model)
    assert found.updated_s >= session.updated_s
    assert found == revised


def test_an_update_made_from_an_old_revision_is_refused(store: SessionStore) -> None:
    session = made(store)
    store.replace("ada", store.revised("ada", UpdateSessionRequest(session.id)))
    for revision in (0, 1, 3):
        with pytest.raises(FailedPrecondition) as caught:
            store.revised("ada", UpdateSessionRequest(session.id, revision=revision))
        assert caught.value.message == (
            f"session {session.id!r} is at revision 2, and this update was made from {revision}; get it again and "
            "apply the change to that"
        )
    assert store.revised("ada", UpdateSessionRequest(session.id)).revision == 3, "who names none takes what there is"


def test_a_session_deleted_meanwhile_is_not_brought_back(store: SessionStore) -> None:
    session = made(store)
    revised = store.revised("ada", UpdateSessionRequest(session.id))
    assert store.delete("ada", session.id) == session
    with pytest.raises(NotFound, match="it was deleted, or never was"):
        store.replace("ada", revised)
    assert store.list("ada") == []


def test_the_most_allowed_are_allowed_and_no_more(store: SessionStore) -> None:
    first, _ = (made(store, most=2) for _ in range(2))
    with pytest.raises(ResourceExhausted, match="ada has 2 sessions, the most allowed; delete one first"):
        made(store, most=2)
    made(store, "bob", most=2)
    store.delete("ada", first.id)
    made(store, most=2)


def test_without_a_limit_there_is_none(store: SessionStore) -> None:
    for _ in range(5):
        made(store, most=0)
    assert len(store.list("ada")) == 5


def test_a_session_that_is_being_made_holds_its_place(store: SessionStore) -> None:
    with store.drafted("ada", CreateSessionRequest(), "m", 1):
        with pytest.raises(ResourceExhausted, match="ada has 1 sessions"):
            made(store, most=1)
        made(store, "bob", most=1)


def test_a_place_is_given_back_when_the_making_fails(store: SessionStore) -> None:
    def failing() -> None:
        with store.drafted("ada", CreateSessionRequest(), "m", 1):
            raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            failing()
    made(store, most=1)
    assert not store._drafts, "whoever holds no place is forgotten"
