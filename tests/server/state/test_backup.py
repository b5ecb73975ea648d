"""A copy of a state folder under a running server, and a new server over it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Served, gateway

from probewire.cli.__main__ import main
from probewire.protos.edits import Add
from probewire.protos.errors import FailedPrecondition, ResourceExhausted
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.protos.saes import LoadSaeRequest, SaeFiles
from probewire.protos.sessions import CreateSessionRequest, UpdateSessionRequest
from probewire.protos.spec import Hook, Plan
from probewire.protos.tensors import Tensor
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import UserLimits, Users
from probewire.server.gateway.gateway import Gateway
from probewire.server.state import backup as module, database as state_module
from probewire.server.state.backup import copy_state
from probewire.server.state.captures import CaptureStore, Kept
from probewire.server.state.database import State
from probewire.server.worker.sae_loading import load_sae
from tests.saes import write_sae

SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("fake", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))  # fmt: skip
PLAN = Plan((Hook("resid_post.1", edit=Add(Tensor.of([1.0, 2.0]), alpha=3.0)),))


def kept(seed: int) -> Kept:
    array = np.random.default_rng(seed).standard_normal((3, 64)).astype(np.float32)
    return Kept("fake", "resid_post.1", "input", (0, 1, 2), array)


def store_of(folder: Path) -> CaptureStore:
    return CaptureStore(State(folder), max_bytes=1 << 30, ttl_s=3600)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_new_server_over_the_copy_has_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, copy, restored = (tmp_path / name for name in ("state", "copy", "restored"))
    before: dict[str, Any] = {}

    async def filled(it: Gateway, server: Served) -> None:
        before["key"] = it.users.add("ada", "researcher", UserLimits(requests=7))
        before["old key"] = it.users.add("bob", "viewer")
        it.users.revoke("bob")
        CALLER.set(Caller(it.users.get("ada"), "req-ada"))
        session = await it.create_session(CreateSessionRequest(Plan(), "fake", "mood"))
        before["session"] = await it.update_session(UpdateSessionRequest(session.id, PLAN))
        before["capture"] = it.store.put("ada", kept(1))
        folder = write_sae(tmp_path / "sae")
        files = SaeFiles((folder / "cfg.json").read_text(), (folder / "sae_weights.safetensors").read_bytes())
        before["sae"] = load_sae(LoadSaeRequest("mine", files=files), it.users.get("ada"), INFO, it.sae_store, ())
        it.store.reserve("ada", 1000, 0)
        assert await asyncio.to_thread(main, ["backup", str(copy), "--state", str(state)]) == 0

    async def same(it: Gateway, server: Served) -> None:
        ada = it.users.by_key(before["key"])
        assert ada is not None
        assert (ada.role, ada.limits.requests) == ("researcher", 7)
        assert it.users.by_key(before["old key"]) is None
        CALLER.set(Caller(ada, "req-ada"))
        assert await it.sessions() == [before["session"]]
        assert await it.update_session(UpdateSessionRequest(before["session"].id, Plan())), "which can be used"
        assert await it.captures("") == [before["capture"]]
        _, tensor = await it.capture(before["capture"].id, "")
        np.testing.assert_array_equal(tensor.numpy(), kept(1).array)
        assert await it.saes("") == [before["sae"]]
        found = it.sae_store.get(ada, "mine", INFO)
        assert found.hash == before["sae"].hash
        assert it.store.used_bytes() == sum(row[0] for row in it.store._state.rows("SELECT bytes FROM captures"))

    async def run(folder: Path, scenario: Callable[..., Any]) -> None:
        async with asyncio.timeout(60), gateway("fake", state_dir=str(folder)) as (it, server):
            await scenario(it, server)

    asyncio.run(run(state, filled))
    assert capsys.readouterr().out.startswith("backed up 2 users, 1 sessions, 1 captures, 1 SAEs, 0 variants (0.")
    assert not [name for name in names(copy) if name.endswith(("-wal", "-shm", ".draft"))], "one file is the database"
    assert {path.stat().st_mode & 0o077 for path in (copy, *copy.rglob("*"))} == {0}, "for its owner alone"
    shutil.rmtree(state)
    assert main(["restore", str(copy), "--state", str(restored)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("restored 2 users")
    assert "revoke again whoever was revoked since" in captured.err
    assert names(restored) == names(copy)
    asyncio.run(run(restored, same))


def test_while_captures_come_and_go_every_row_has_its_whole_file(tmp_path: Path) -> None:
    store, stop = store_of(tmp_path / "state"), threading.Event()

    def come_and_go() -> None:
        own, seed, there = store_of(tmp_path / "state"), 0, list[str]()
        while not stop.is_set():
            there.append(own.put("ada", kept(seed)).id)
            seed += 1
            if len(there) > 5:
                own.delete("ada", there.pop(0))

    for seed in range(20):
        store.put("ada", kept(seed))
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for index in range(5):
            found = copy_state(tmp_path / "state", tmp_path / str(index))
            assert found.troubles == []
            copy = store_of(tmp_path / str(index))
            listed = copy.list("ada")
            assert found.captures == len(listed) >= 20
            for item in listed:
                copy.get_item("ada", item.id)  # compares its checksum
            assert {f"captures/{item.id}.safetensors" for item in listed} <= names(tmp_path / str(index))
    finally:
        stop.set()
        thread.join()


def test_what_is_deleted_meanwhile_is_not_in_the_copy_and_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "state")
    first, second = store.put("ada", kept(1)), store.put("ada", kept(2))
    copied = module._copied

    def deleting(source: Path, target: Path) -> int:
        if store.has("ada", first.id):
            store.delete("ada", first.id)
        return copied(source, target)

    monkeypatch.setattr(module, "_copied", deleting)
    found = copy_state(tmp_path / "state", tmp_path / "copy")
    assert (found.captures, found.troubles) == (1, [])
    assert store_of(tmp_path / "copy").list("ada") == [second]


def test_a_damaged_file_is_copied_and_told_a_lost_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_of(tmp_path / "state")
    damaged, lost = store.put("ada", kept(1)), store.put("ada", kept(2))
    folder = tmp_path / "state" / "captures"
    with (folder / f"{damaged.id}.safetensors").open("r+b") as file:
        file.write(b"x")
    (folder / f"{lost.id}.safetensors").unlink()
    assert main(["backup", str(tmp_path / "copy"), "--state", str(tmp_path / "state")]) == 1
    captured = capsys.readouterr()
    assert f"{damaged.id}.safetensors is damaged, and was copied as it is" in captured.err
    assert f"the file of {lost.id} in {folder} is not there: it is left out" in captured.err
    assert "1 captures" in captured.out
    assert [item.id for item in store_of(tmp_path / "copy").list("ada")] == [damaged.id]


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_of(tmp_path / "state").put("ada", kept(1))
    (tmp_path / "there").mkdir()

    def full(source: Path, target: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copied", full)
    for name in ("new", "there"):
        with pytest.raises(ResourceExhausted, match="is full, so nothing was copied"):
            copy_state(tmp_path / "state", tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "there").iterdir()) == []


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    Users(State(tmp_path / "state")).add("ada", "researcher")
    copy_state(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(FailedPrecondition, match="copy is not empty; name a new folder"):
        copy_state(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(FailedPrecondition, match="lies in"):
        copy_state(tmp_path / "state", tmp_path / "state" / "saes" / "copy")
    (tmp_path / "copy" / "state.sqlite").rename(tmp_path / "copy" / "state.sqlite.draft")
    with pytest.raises(FailedPrecondition, match=r"nor a whole copy of one: it holds no state\.sqlite"):
        copy_state(tmp_path / "copy", tmp_path / "new")
    with sqlite3.connect(tmp_path / "state" / "state.sqlite") as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(FailedPrecondition, match=r"was written by a newer probewire \(schema 99"):
        copy_state(tmp_path / "state", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_copy_opens_from_a_medium_that_cannot_be_written(tmp_path: Path) -> None:
    Users(State(tmp_path / "state")).add("ada", "researcher")
    copy_state(tmp_path / "state", tmp_path / "copy")
    database = sqlite3.connect(f"file:{tmp_path}/copy/state.sqlite?mode=ro&immutable=1", uri=True)
    assert database.execute("SELECT name FROM users").fetchall() == [("ada",)]
    assert database.execute("PRAGMA journal_mode").fetchall() == [("delete",)]
    database.close()


def test_the_state_of_an_older_version_is_copied_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "state.sqlite") as database:
        database.executescript(f"{state_module._SCHEMA}; PRAGMA user_version=1")
    assert copy_state(tmp_path / "state", tmp_path / "copy").saes == 0
    with sqlite3.connect(tmp_path / "copy" / "state.sqlite") as database:
        assert database.execute("PRAGMA user_version").fetchall() == [(1,)]
    assert Users(State(tmp_path / "copy")).list() == [], "which a new server brings up to date"
