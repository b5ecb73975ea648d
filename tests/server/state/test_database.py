"""The state folder's database: its schema, transactions, several processes, and files that are there whole or not."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from probewire.protos.errors import FailedPrecondition, ResourceExhausted
from probewire.server.state import database as module
from probewire.server.state.database import DATABASE, VERSION, State, default_state_folder, write_whole

INSERT = "INSERT INTO reservations VALUES (?,?,?,?)"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State(tmp_path / "state")
    yield state
    state.close()


def reserved(state: State) -> list[str]:
    return [name for (name,) in state.rows("SELECT id FROM reservations ORDER BY id")]


def test_a_new_folder_has_all_that_is_kept_and_nobody_else_may_look(state: State) -> None:
    tables = {name for (name,) in state.rows("SELECT name FROM sqlite_master WHERE type='table'")}
    assert tables == {"users", "sessions", "captures", "reservations", "saes", "variants", "variant_versions"}
    assert state.rows("PRAGMA user_version") == [(VERSION,)]
    for folder in (state.folder, state.captures, state.saes, state.uploads, state.variants):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (state.folder / DATABASE).stat().st_mode & 0o777 == 0o600


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    State(tmp_path / "state").close()
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_what_was_kept_is_there_after_a_restart(state: State) -> None:
    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 7, 1))
    state.close()
    again = State(state.folder)
    assert again.rows("SELECT owner, bytes FROM reservations WHERE id=?", "a") == [("ada", 7)]
    again.close()


def test_a_folder_of_the_first_version_gets_what_came_later(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    old = sqlite3.connect(folder / DATABASE)
    old.executescript(module._SCHEMA)
    old.execute("INSERT INTO users VALUES ('ada', 'viewer', 'k', x'00', '{}', 1.0, NULL)")
    old.execute("PRAGMA user_version=1")
    old.commit()
    old.close()
    state = State(folder)
    assert state.rows("SELECT name FROM users") == [("ada",)]
    assert state.rows("SELECT key FROM saes") == []
    assert state.rows("PRAGMA user_version") == [(VERSION,)]
    state.close()


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"my thesis " * 1000)
    with pytest.raises(FailedPrecondition, match=r"cannot be used: .*; choose another with --state"):
        State(tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == b"my thesis " * 1000


def test_everything_in_a_transaction_happens_or_nothing(state: State) -> None:
    def broken() -> None:
        with state.transaction() as database:
            database.execute(INSERT, ("b", "ada", 1, 1))
            raise ZeroDivisionError

    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 1, 1))
    with pytest.raises(ZeroDivisionError):
        broken()
    assert reserved(state) == ["a"]


def test_a_row_that_is_there_already_is_its_callers_to_handle(state: State) -> None:
    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 1, 1))

    def twice() -> None:
        with state.transaction() as database:
            database.execute(INSERT, ("b", "ada", 1, 1))
            database.execute(INSERT, ("a", "ada", 1, 1))

    with pytest.raises(sqlite3.IntegrityError):
        twice()
    assert reserved(state) == ["a"]
    with state.transaction() as database:
        database.execute(INSERT, ("c", "ada", 1, 1))
    assert reserved(state) == ["a", "c"]


def fill_up(state: State) -> ResourceExhausted:
    """What a write raises that the disk has no room for."""
    [(pages,)] = state.rows("PRAGMA page_count")
    state.rows(f"PRAGMA max_page_count={pages + 1}")
    with pytest.raises(ResourceExhausted) as caught, state.transaction() as database:
        database.execute(INSERT, ("a", "x" * 1_000_000, 1, 1))
    state.rows("PRAGMA max_page_count=1000000")
    return caught.value


def test_a_full_disk_is_told_of_with_a_time_to_come_back_and_is_no_end(state: State) -> None:
    error = fill_up(state)
    assert error.message.startswith(f"the server's database in {state.folder} cannot be written: ")
    assert error.retry_after_s == 5.0
    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 1, 1))
    assert reserved(state) == ["a"]


def test_a_full_disk_is_called_full(state: State) -> None:
    assert fill_up(state).message.endswith("database or disk is full")


def test_another_process_that_writes_for_too_long_is_told_of(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.01)
    other = State(state.folder)
    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 1, 1))
        with pytest.raises(ResourceExhausted, match="locked"), other.transaction():
            pass
        assert reserved(other) == [], "what is not finished is not seen"
    assert reserved(other) == ["a"]
    other.close()


def test_threads_take_turns(state: State) -> None:
    def add(thread: int) -> None:
        for i in range(20):
            with state.transaction() as database:
                [(n,)] = database.execute("SELECT COUNT(*) FROM reservations").fetchall()
                database.execute(INSERT, (f"{thread}.{i}", "ada", n, 1))

    threads = [threading.Thread(target=add, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [n for (n,) in state.rows("SELECT bytes FROM reservations ORDER BY bytes")]
    assert counts == list(range(80)), "each saw all that were before it"


def test_changes_are_those_of_others(state: State) -> None:
    other = State(state.folder)
    before = state.changes
    with state.transaction() as database:
        database.execute(INSERT, ("a", "ada", 1, 1))
    assert state.changes == before, "one's own writes make no cache stale"
    with other.transaction() as database:
        database.execute(INSERT, ("b", "ada", 1, 1))
    assert state.changes != before
    other.close()


def test_values_are_never_part_of_a_query(state: State) -> None:
    nasty = "x'; DROP TABLE reservations; --"
    with state.transaction() as database:
        database.execute(INSERT, (nasty, "ada", 1, 1))
    assert state.rows("SELECT id FROM reservations WHERE id=?", nasty) == [(nasty,)]
    assert reserved(state) == [nasty]


def test_the_folder_of_a_user_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state_folder() == tmp_path / "probewire"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/ada")
    assert default_state_folder() == Path("/home/ada/.local/state/probewire")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.bin", b"old")
    write_whole(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.bin", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
