"""`probewire users`, on a state folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probewire.cli.__main__ import main
from probewire.server.auth.users import UserLimits, Users
from probewire.server.state.database import State, default_state_folder

Command = Callable[..., tuple[str, str]]


@pytest.fixture
def users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `probewire users …`; gives standard output and standard error."""

    def run(*arguments: str, status: int = 0) -> tuple[str, str]:
        assert main(["users", *arguments, "--state", str(tmp_path / "state")]) == status
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Users]:
    """What a running server would see."""
    state = State(tmp_path / "state")
    yield Users(state)
    state.close()


def test_a_key_is_printed_once_and_alone(users: Command, kept: Users) -> None:
    out, err = users("add", "ada")
    assert re.fullmatch(r"pw_\w{8}_[\w-]{43}\n", out)
    assert "shown this once" in err
    assert "first user: from now on every request to the server needs a key" in err
    assert out.strip() not in err
    ada = kept.by_key(out.strip())
    assert ada is not None
    assert (ada.name, ada.role, ada.limits) == ("ada", "researcher", UserLimits())
    assert "first user" not in users("add", "bob")[1]


def test_roles_and_limits(users: Command, kept: Users) -> None:
    options = (
        "--role",
        "viewer",
        "--requests",
        "2",
        "--tokens-per-minute",
        "1000",
        "--store-mib",
        "3",
        "--sessions",
        "0",
    )
    users("add", "ada", *options)
    [ada] = kept.list()
    assert (ada.role, ada.limits) == ("viewer", UserLimits(2, 1000, 3 << 20, 0))


def test_rotate_and_revoke_reach_a_running_server(users: Command, kept: Users) -> None:
    old = users("add", "ada")[0].strip()
    assert kept.by_key(old)
    new = users("rotate", "ada")[0].strip()
    assert (kept.by_key(old), kept.by_key(new) is not None) == (None, True)
    out, err = users("revoke", "ada")
    assert (out, "rotate ada` lets them in again" in err) == ("", True)
    assert kept.by_key(new) is None
    assert kept.by_key(users("rotate", "ada")[0].strip())


def test_the_list_shows_everything_but_keys(users: Command) -> None:
    keys = [
        users("add", "ada", "--role", "admin", "--tokens-per-minute", "60000")[0].strip(),
        users("add", "bob")[0].strip(),
    ]
    users("revoke", "bob")
    out, err = users("list")
    head, ada, bob = out.splitlines()
    assert head.split() == [
        "name",
        "role",
        "key",
        "id",
        "since",
        "state",
        "requests",
        "tokens/min",
        "store",
        "MiB",
        "sessions",
    ]
    assert ada.split()[:3] == ["ada", "admin", keys[0][:11] + "…"]
    assert "active" in ada
    assert ada.split()[-4:] == ["128", "60,000", "4,096", "64"]
    assert re.search(r"revoked 20\d\d-\d\d-\d\d \d\d:\d\d +128 +no limit", bob)
    assert not any(key[12:] in out + err for key in keys)


@pytest.mark.parametrize("action", [("list",), ("revoke", "ada"), ("rotate", "ada")])
def test_a_folder_that_is_none_is_not_made(users: Command, action: tuple[str, ...], tmp_path: Path) -> None:
    out, err = users(*action, status=2)
    assert (out, "name its folder with --state" in err) == ("", True)
    assert not (tmp_path / "state").exists()


def test_mistakes_are_one_line(users: Command) -> None:
    users("add", "ada")
    for arguments, message in (
        (("add", "ada"), "there is a user 'ada' already"),
        (("add", "a b"), "a user's name is 1 to 64 letters"),
        (("add", "bob", "--requests", "-1"), "limit requests must be 0"),
        (("rotate", "bob"), "no user 'bob'; users: ada"),
    ):
        out, err = users(*arguments, status=2)
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_a_server_without_users_says_so(users: Command, kept: Users) -> None:
    assert users("list") == (
        "",
        "no users; whoever reaches the server is let in. `probewire users add NAME` makes the first\n",
    )


def test_nobody_else_can_read_the_folder(users: Command, tmp_path: Path) -> None:
    users("add", "ada")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "state.sqlite").stat().st_mode & 0o777 == 0o600


def test_the_usual_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert main(["users", "add", "ada"]) == 0
    assert default_state_folder() == tmp_path / "probewire"
    assert capsys.readouterr().out.startswith("pw_")
    assert (tmp_path / "probewire" / "state.sqlite").exists()
    assert main(["users", "list"]) == 0
    assert " ada " in capsys.readouterr().out.replace("\n", " ")


def test_set_changes_what_is_named_and_nothing_else(users: Command, kept: Users) -> None:
    key = users("add", "ada", "--requests", "5", "--sessions", "7")[0].strip()
    assert "admin" in users("set", "ada", "--role", "admin", "--requests", "9")[1]
    found = kept.by_key(key)
    assert found is not None
    assert (found.role, found.limits.requests, found.limits.sessions) == ("admin", 9, 7)
    assert "nothing to change" in users("set", "ada", status=2)[1]
    assert "no user 'bob'" in users("set", "bob", "--role", "viewer", status=2)[1]
