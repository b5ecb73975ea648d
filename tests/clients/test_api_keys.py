"""Keys, at a server that has users: who gets in, and what the others are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_server import FakeServer
from fake_service import FakeService

from probewire.clients import Client, Unauthenticated
from probewire.server.auth.users import Users
from probewire.server.state.database import State


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    state = State(tmp_path_factory.mktemp("state"))
    yield Users(state)
    state.close()


@pytest.fixture(scope="module")
def guarded(users: Users) -> Iterator[FakeServer]:
    server = FakeServer(FakeService(), users=users)
    yield server
    server.stop()


def test_a_key_opens_both_apis_until_it_is_revoked(guarded: FakeServer, users: Users) -> None:
    key = users.add("ada", "researcher")
    for url in (guarded.grpc_url, guarded.http_url):
        with Client(url, api_key=key) as client:
            assert client.generate("abc", max_new_tokens=3).text == "def"
            assert client.session().refresh().revision == 1
        for wrong in (None, key[:-1] + ("a" if key[-1] != "a" else "b"), "nonsense"):
            with Client(url, api_key=wrong) as client:
                for call in (client.models, client.sessions, lambda: client.generate("abc"), client.activity):
                    with pytest.raises(Unauthenticated, match="key"):
                        call()
                assert client.health().ready  # open to all
    users.revoke("ada")
    for url in (guarded.grpc_url, guarded.http_url):
        with Client(url, api_key=key) as client, pytest.raises(Unauthenticated, match="not valid here"):
            client.models()
