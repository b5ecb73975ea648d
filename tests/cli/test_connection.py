"""Where the commands find the server and the key."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_server import FakeServer  # pyright: ignore[reportMissingImports] - lies beside the clients' tests
from fake_service import FakeService  # pyright: ignore[reportMissingImports] - as above

from probewire.cli.__main__ import main
from probewire.cli.connection import add_connection_arguments, connected
from probewire.clients import Client, InvalidArgument
from probewire.server.auth.users import Users
from probewire.server.state.database import State


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    state = State(tmp_path_factory.mktemp("state"))
    yield Users(state)
    state.close()


@pytest.fixture(scope="module")
def key(users: Users) -> str:
    return users.add("ada", "researcher")


@pytest.fixture(scope="module")
def guarded(users: Users) -> Iterator[FakeServer]:
    """Lets in who has a key."""
    server = FakeServer(FakeService(), users=users)
    yield server
    server.stop()


def client(*options: str) -> Client:
    parser = argparse.ArgumentParser()
    add_connection_arguments(parser)
    return connected(parser.parse_args(options), timeout_s=20)


def test_the_key_comes_from_an_option_a_file_or_the_environment(
    guarded: FakeServer, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(f"{key}\n")
    monkeypatch.setenv("PROBEWIRE_API_KEY", "pw_wrong")
    for options in (("--api-key", key), ("--api-key-file", str(tmp_path / "key"))):
        with client("--url", guarded.grpc_url, *options) as found:
            assert found.models()
    monkeypatch.setenv("PROBEWIRE_API_KEY", key)
    with client("--url", guarded.http_url) as found:
        assert found.models()


def test_the_library_itself_reads_no_environment(
    guarded: FakeServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROBEWIRE_API_KEY", key)
    from probewire.clients import Unauthenticated

    with Client(guarded.grpc_url) as found, pytest.raises(Unauthenticated):
        found.models()


def test_commands_that_are_refused_say_why_in_one_line(
    guarded: FakeServer, key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["chat"], ["top", "--once"]):
        assert main([*command, "--url", guarded.http_url]) == 2
        error = capsys.readouterr().err
        assert error.startswith("probewire: this box has users: send your key")
        assert error.count("\n") == 1
    monkeypatch.setenv("PROBEWIRE_API_KEY", key)
    assert main(["top", "--once", "--interval", "0.05", "--url", guarded.grpc_url]) == 0
    assert "nothing is running" in capsys.readouterr().out


def test_help_never_shows_the_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBEWIRE_API_KEY", "pw_secret")
    for command in ("chat", "top"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert "--ca-file" in out
        assert "pw_secret" not in out


def test_a_warning_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    client("--url", "grpc://box.example", "--api-key", "pw_secret").close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("probewire: the api_key crosses the network to grpc://box.example unencrypted")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot read the key in '.*nope'"):
        client("--api-key-file", str(tmp_path / "nope"))
    with pytest.raises(InvalidArgument, match="cannot read ca_file"):
        client("--url", "grpcs://box", "--ca-file", str(tmp_path / "nope"))
    with pytest.raises(SystemExit):
        client("--api-key", "a", "--api-key-file", "b")
