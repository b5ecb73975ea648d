"""Stored captures: owned, bounded, whole or not at all, and there after a restart."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from probewire.protos.errors import Internal, NotFound, ProbewireError, ResourceExhausted
from probewire.protos.model import StoredCapture
from probewire.server.state import captures as module
from probewire.server.state.captures import CaptureStore, Kept
from probewire.server.state.database import State

ROWS = np.arange(24, dtype=np.float32).reshape(3, 8)


def kept(array: Any = ROWS, model: str = "m") -> Kept:
    return Kept(model, "resid_post.1", "input", tuple(range(len(array))), array)


@pytest.fixture
def store(tmp_path: Path) -> CaptureStore:
    return CaptureStore(State(tmp_path), max_bytes=10_000, ttl_s=1000.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "bool", ml_dtypes.bfloat16])
def test_what_was_put_comes_back_to_the_bit_after_a_restart(store: CaptureStore, tmp_path: Path, dtype: Any) -> None:
    array = ROWS.astype(dtype)
    item = store.put("ada", kept(array))
    again = CaptureStore(State(tmp_path), max_bytes=10_000, ttl_s=1000.0)
    found, tensor = again.get_item("ada", item.id)
    assert found == item
    assert tensor.numpy().tobytes() == array.tobytes()
    assert again.of("ada")[item.id].dtype == array.dtype


def test_an_owners_captures_do_not_exist_for_others(store: CaptureStore) -> None:
    item = store.put("ada", kept())
    assert store.list("bob") == []
    assert item.id not in store.of("bob")
    for call in (store.get_item, store.delete):
        with pytest.raises(NotFound) as hers:
            call("bob", item.id)
        with pytest.raises(NotFound) as nobodys:
            call("bob", "cap-none")
        assert hers.value.message.replace(item.id, "cap-none") == nobodys.value.message
    assert list(store.of("ada")) == [item.id]


@pytest.mark.parametrize("bad", ["", "..", "../state.sqlite", "/etc/passwd", "a/b", "x\0y", "cap-" + "x" * 5000])
def test_names_are_only_looked_up_never_paths(store: CaptureStore, bad: str) -> None:
    with pytest.raises(NotFound):
        store.get_item("ada", bad)
    with pytest.raises(NotFound):
        store.delete("ada", bad)


def test_room_is_kept_for_what_was_promised(store: CaptureStore) -> None:
    reservation = store.reserve("ada", 600, owner_max_bytes=1000)
    with pytest.raises(ResourceExhausted, match="of ada's 1,000"):
        store.reserve("ada", 600, owner_max_bytes=1000)
    store.release(reservation)
    store.release(store.reserve("ada", 600, owner_max_bytes=1000))
    store.reserve("bob", 9_900, owner_max_bytes=0)
    with pytest.raises(ResourceExhausted, match="of the box's 10,000"):
        store.reserve("ada", 600, owner_max_bytes=0)


def test_captures_expire(store: CaptureStore) -> None:
    store.ttl_s = -1.0
    item = store.put("ada", kept())
    with pytest.raises(NotFound, match="expired"):
        store.get_item("ada", item.id)
    assert store.list("ada") == []
    assert store.purge() == 1
    assert store.used_bytes() == 0


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_not_served(store: CaptureStore, tmp_path: Path, damage: str) -> None:
    item = store.put("ada", kept())
    [file] = (tmp_path / "captures").iterdir()
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        data[-3] ^= 1
        file.write_bytes(data[:-5] if damage == "truncate" else data)
    with pytest.raises(Internal, match="damaged"):
        store.get_item("ada", item.id)
    store.delete("ada", item.id)
    assert store.list("ada") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_stores_nothing_and_says_so(
    store: CaptureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    written = 0

    def full(fd: int) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(code, "no space")

    monkeypatch.setattr(module.os, "fsync", full)
    outcome: list[tuple[StoredCapture, ...] | ProbewireError] = []
    done = threading.Event()
    store.put_later("ada", [kept(), kept()], lambda result: (outcome.append(result), done.set())[-1])
    assert done.wait(10)
    assert isinstance(outcome[0], ResourceExhausted)
    assert "disk is full" in outcome[0].message
    assert list((tmp_path / "captures").iterdir()) == [], "the first one went with the second"
    assert store.used_bytes() == 0
    monkeypatch.undo()
    assert store.put("ada", kept()).id in store.of("ada")


def test_half_a_file_of_a_process_that_died_is_never_seen(store: CaptureStore, tmp_path: Path) -> None:
    draft = tmp_path / "captures" / "cap-x.999999999.draft"
    draft.write_bytes(b"half")
    with store._state.transaction() as database:
        database.execute("INSERT INTO reservations VALUES ('r', 'ada', 9000, 999999999)")
    assert store.used_bytes("ada") == 9000
    again = CaptureStore(State(tmp_path), max_bytes=10_000, ttl_s=1000.0)
    assert not draft.exists()
    assert again.used_bytes() == 0
    assert again.list("ada") == []
