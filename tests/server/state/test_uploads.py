"""Weights that come in parts: gone on with, never mixed up, bounded, forgotten in the end."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from probewire.backends.model import footprint
from probewire.backends.saes import read_folder
from probewire.protos.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ResourceExhausted
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.protos.saes import LoadSaeRequest, SaeFiles, SaeInfo, SaePart
from probewire.server.auth.users import User, UserLimits
from probewire.server.state.database import State
from probewire.server.state.saes import SaeStore
from probewire.server.state.uploads import IDLE_S, MAX_UPLOADS
from probewire.server.worker.sae_loading import load_sae
from tests.saes import write_sae

SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))
ADA, BOB = (User(name, "researcher", UserLimits()) for name in ("ada", "bob"))


@pytest.fixture
def store(tmp_path: Path) -> SaeStore:
    return SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path / "sae")


def weights(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def send(
    store: SaeStore, user: User, data: bytes, *, name: str = "", size: int = 10_000, end: int | None = None
) -> str:
    """In parts of `size`, up to `end`; gives the upload's name."""
    name = name or sha256(data)
    for offset in range(0, len(data) if end is None else end, size):
        part = data[offset : min(offset + size, len(data) if end is None else end)]
        assert store.receive(user, SaePart(name, len(data), offset, part)).n_bytes == offset + len(part)
    return name


def load(store: SaeStore, user: User, folder: Path, upload: str, *, site: str = "", name: str = "a") -> SaeInfo:
    files = SaeFiles((folder / "cfg.json").read_text(), upload=upload)
    return load_sae(LoadSaeRequest(name, files=files, site=site), user, INFO, store, ())


def test_what_came_in_parts_is_loaded_and_let_go_of(store: SaeStore, folder: Path) -> None:
    upload = send(store, ADA, weights(folder))
    item = load(store, ADA, folder, upload)
    assert (item.hash, item.source) == (upload, "sent along")
    assert store.uploads.n_bytes() == 0
    kept = store.of(ADA, INFO)["a"]
    assert (kept.hash, kept.d_sae) == (upload, 96)


def test_a_load_that_is_refused_keeps_what_was_sent(store: SaeStore, folder: Path) -> None:
    upload = send(store, ADA, weights(folder))
    with pytest.raises(InvalidArgument, match="no SAE can be loaded onto"):
        load(store, ADA, folder, upload, site="mlp_act.1")
    assert store.receive(ADA, SaePart(upload, len(weights(folder)))).n_bytes == len(weights(folder))
    assert load(store, ADA, folder, upload).name == "a"


def test_a_part_that_comes_twice_or_too_early_changes_nothing(store: SaeStore, folder: Path) -> None:
    data = weights(folder)
    upload = send(store, ADA, data, end=20_000)
    for offset in (0, 10_000, 30_000):
        assert store.receive(ADA, SaePart(upload, len(data), offset, data[offset : offset + 10_000])).n_bytes == 20_000
    store.receive(ADA, SaePart(upload, len(data), 20_000, data[20_000:]))
    assert load(store, ADA, folder, upload).hash == upload


def test_what_is_damaged_or_not_whole_is_never_loaded(store: SaeStore, folder: Path) -> None:
    data = weights(folder)
    upload = send(store, ADA, bytes(100) + data[100:], name=sha256(data))
    with pytest.raises(
        InvalidArgument, match=f"the {len(data):,} bytes .* have not the SHA-256 {upload}: they are damaged"
    ):
        load(store, ADA, folder, upload)
    send(store, ADA, data, end=20_000)
    with pytest.raises(InvalidArgument, match=r"the 20,000 bytes .* or not all"):
        load(store, ADA, folder, upload)
    with pytest.raises(NotFound, match="send them again"):
        load(store, ADA, folder, upload)


def test_nobody_loads_what_another_has_sent(store: SaeStore, folder: Path) -> None:
    upload = send(store, ADA, weights(folder))
    with pytest.raises(NotFound, match="send them again"):
        load(store, BOB, folder, upload)
    assert store.receive(BOB, SaePart(upload, len(weights(folder)))).n_bytes == 0
    assert load(store, ADA, folder, upload).owner == "ada"


def test_bytes_are_bounded_before_they_come(tmp_path: Path) -> None:
    store = SaeStore(State(tmp_path / "state"), max_bytes=100_000, max_saes=9, max_all_bytes=130_000)
    small = User("eve", "researcher", UserLimits(store_bytes=60_000))
    with pytest.raises(InvalidArgument, match="has 100,001 bytes; at most 100,000 fit"):
        store.receive(ADA, SaePart("0" * 64, 100_001, 0, b"x"))
    send(store, small, bytes(50_000))
    with pytest.raises(ResourceExhausted, match="takes 20,000 bytes, and 50,000 of eve's 60,000"):
        send(store, small, bytes(20_000))
    with pytest.raises(ResourceExhausted, match="and 50,000 of the box's 130,000"):
        send(store, ADA, bytes(90_000))
    send(store, ADA, bytes(70_000))


def test_what_is_announced_counts_before_it_is_there(tmp_path: Path) -> None:
    store = SaeStore(State(tmp_path / "state"), max_bytes=100_000, max_saes=9, max_all_bytes=100_000)
    send(store, ADA, bytes(70_000), end=10_000)
    with pytest.raises(
        ResourceExhausted, match=r"70,000 of the box's 100,000 .* \(70,000 of them sent and not loaded yet\)"
    ):
        send(store, BOB, bytes(40_000), end=10_000)


def test_the_same_file_of_two_users_counts_twice(tmp_path: Path) -> None:
    store = SaeStore(State(tmp_path / "state"), max_bytes=100_000, max_saes=9, max_all_bytes=100_000)
    send(store, ADA, bytes(60_000))
    with pytest.raises(ResourceExhausted, match="60,000 of the box's 100,000"):
        send(store, BOB, bytes(60_000))


def test_what_was_sent_counts_when_another_is_loaded(store: SaeStore, folder: Path, tmp_path: Path) -> None:
    eve = User("eve", "researcher", UserLimits(store_bytes=100_000))
    left = send(store, eve, bytes(60_000))
    files = SaeFiles((folder / "cfg.json").read_text(), weights(folder))
    with pytest.raises(ResourceExhausted, match="60,000 of eve's 100,000"):
        load_sae(LoadSaeRequest("a", files=files), eve, INFO, store, ())
    age(tmp_path, left, IDLE_S + 5)
    assert load_sae(LoadSaeRequest("a", files=files), eve, INFO, store, ()).name == "a", "what is left alone makes room"
    assert store.uploads.n_bytes() == 0


def age(tmp_path: Path, upload: str, by_s: float) -> None:
    """As if a file had had its last part so long ago."""
    [path] = (tmp_path / "state" / "uploads").glob(f"*/{upload}")
    os.utime(path, (time.time() - by_s,) * 2)


def test_what_is_loaded_need_not_be_sent_again(store: SaeStore, folder: Path) -> None:
    data = weights(folder)
    upload = send(store, ADA, data)
    load(store, ADA, folder, upload)
    assert store.receive(ADA, SaePart(upload, len(data))).n_bytes == len(data)
    assert store.receive(BOB, SaePart(upload, len(data))).n_bytes == 0
    with pytest.raises(FailedPrecondition, match="you have an SAE 'a'"):
        load(store, ADA, folder, upload)
    assert load(store, ADA, folder, upload, name="b").hash == upload


def test_no_file_is_read_that_memory_cannot_hold(
    store: SaeStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = send(store, ADA, weights(folder))
    monkeypatch.setattr(footprint, "free_bytes", lambda: 100_000)
    monkeypatch.setattr(Path, "read_bytes", lambda *_: pytest.fail("it was read"))
    with pytest.raises(FailedPrecondition, match=r"reading the SAE that was sent takes about .* and .* are free"):
        load(store, ADA, folder, upload)
    with pytest.raises(FailedPrecondition, match=r"reading the SAE in sae takes about .* of memory, and .* are free"):
        read_folder(folder, 1 << 20)


def test_what_is_damaged_on_the_server_is_not_taken_for_what_was_sent(
    store: SaeStore, folder: Path, tmp_path: Path
) -> None:
    upload = send(store, ADA, weights(folder))
    load(store, ADA, folder, upload)
    [kept] = (tmp_path / "state" / "saes").glob("*/sae_weights.safetensors")
    kept.write_bytes(weights(folder)[:-4] + bytes(4))
    with pytest.raises(Internal, match=f"the SHA-256 {upload} are damaged; unload it, and load it again"):
        load(store, ADA, folder, upload, name="b")


def test_files_of_a_user_are_bounded(store: SaeStore, tmp_path: Path) -> None:
    for n in range(MAX_UPLOADS):
        send(store, ADA, bytes([n]))
    with pytest.raises(ResourceExhausted, match=f"ada is sending {MAX_UPLOADS} files at once"):
        send(store, ADA, bytes([MAX_UPLOADS]))
    send(store, BOB, b"his")
    age(tmp_path, sha256(bytes([3])), IDLE_S + 5)
    send(store, ADA, bytes([MAX_UPLOADS]))
    assert store.uploads.size(ADA, sha256(bytes([3]))) == 0


def test_what_nobody_adds_to_is_forgotten(store: SaeStore, tmp_path: Path) -> None:
    old, young = send(store, ADA, b"old"), send(store, ADA, b"young")
    age(tmp_path, old, 3700)
    store.uploads.purge()
    assert store.receive(ADA, SaePart(old, 3)).n_bytes == 0
    assert store.receive(ADA, SaePart(young, 5)).n_bytes == 5
    age(tmp_path, young, 3700)
    store.uploads.purge()
    assert list((tmp_path / "state" / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("../../etc/passwd", 5), "must be a SHA-256 in 64 small hex digits, got '../../etc/passwd'"),
        (("A" * 64, 5), "must be a SHA-256"),
        (("0" * 64, 0), "are not of a file of 0 bytes"),
        (("0" * 64, 5, -1, b"x"), "are not of a file of 5 bytes"),
        (("0" * 64, 5, 3, b"xyz"), "bytes 3 … 6 are not of a file of 5 bytes"),
    ],
)
def test_parts_that_are_none(part: tuple[str, int], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        SaePart(*part)


def test_files_are_given_or_were_sent() -> None:
    for files in ({}, {"weights": b"x", "upload": "0" * 64}):
        with pytest.raises(InvalidArgument, match="exactly one of weights"):
            SaeFiles("{}", **files)


def test_a_full_disk_is_told(store: SaeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResourceExhausted, match="No space left on device"):
        send(store, ADA, b"abc")
