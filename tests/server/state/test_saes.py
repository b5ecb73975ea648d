"""Loaded SAEs: owned or shared, bounded, checked again at use, and there after a restart."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.saes import read_folder
from probewire.protos.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.protos.saes import LoadSaeRequest, SaeFiles, SaeInfo
from probewire.server.auth.users import LOCAL, User, UserLimits
from probewire.server.state import saes as module
from probewire.server.state.database import State
from probewire.server.state.saes import SaeStore
from probewire.server.worker.sae_loading import load_sae
from tests.saes import write_sae

SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))
ADA, BOB = (User(name, "researcher", UserLimits()) for name in ("ada", "bob"))
ROOT = User("root", "admin", UserLimits())


@pytest.fixture
def store(tmp_path: Path) -> SaeStore:
    return SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=3)


def sent(folder: Path, name: str = "a", **options: Any) -> LoadSaeRequest:
    """An SAE that is sent along."""
    files = SaeFiles((folder / "cfg.json").read_text(), (folder / "sae_weights.safetensors").read_bytes())
    return LoadSaeRequest(name, files=files, **options)


def put(store: SaeStore, user: User, folder: Path, name: str = "a", *, shared: bool = False) -> SaeInfo:
    return load_sae(sent(folder, name, shared=shared), user, INFO, store, ())


def test_what_was_loaded_is_there_after_a_restart(store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    item = put(store, ADA, folder)
    again = SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=3)
    assert again.list(ADA) == [item]
    found, mine = again.of(ADA, INFO)["a"], read_folder(folder, 1 << 20).load("a", "", "auto", INFO)
    assert (found.hash, found.site, found.k) == (mine.hash, mine.site, mine.k)
    for key, array in mine.arrays.items():
        np.testing.assert_array_equal(found.arrays[key], array)


def test_what_is_kept_loads_in_sae_lens(store: SaeStore, tmp_path: Path) -> None:
    import torch

    SAE: Any = import_module("sae_lens").SAE

    folder = write_sae(tmp_path / "sae", "jumprelu")
    put(store, ADA, folder)
    [kept] = (tmp_path / "state" / "saes").iterdir()
    rows = torch.randn(5, 64)
    ours, theirs = SAE.load_from_disk(str(kept)), SAE.load_from_disk(str(folder))
    assert torch.equal(ours.encode(rows), theirs.encode(rows))


def test_private_ones_do_not_exist_for_others(store: SaeStore, tmp_path: Path) -> None:
    put(store, ADA, write_sae(tmp_path / "sae"))
    assert store.list(BOB) == []
    assert "a" not in store.of(BOB, INFO)
    assert list(store.of(ADA, INFO)) == ["a"]
    with pytest.raises(NotFound, match="no SAE 'a' is loaded for you; loaded: none"):
        store.delete(BOB, "a", "")


def test_shared_ones_do_and_only_their_owner_or_an_admin_unloads_them(store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    put(store, ADA, folder, shared=True)
    assert store.of(BOB, INFO)["a"].d_sae == 96
    with pytest.raises(PermissionDenied, match="belongs to ada"):
        store.delete(BOB, "a", "")
    with pytest.raises(FailedPrecondition, match="ada shares an SAE 'a'"):
        put(store, BOB, folder)
    store.delete(ROOT, "a", "m")
    assert "a" not in store.of(ADA, INFO)
    assert list((tmp_path / "state" / "saes").iterdir()) == []


def test_a_name_is_taken_once_and_a_refused_one_leaves_nothing(store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    put(store, ADA, folder)
    with pytest.raises(FailedPrecondition, match="you have an SAE 'a' on m"):
        put(store, ADA, folder)
    assert len(list((tmp_path / "state" / "saes").iterdir())) == 1
    put(store, BOB, folder)  # two users may each have their own


def test_a_user_has_so_many(store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    for name in "abc":
        put(store, ADA, folder, name)
    with pytest.raises(ResourceExhausted, match="ada has 3 SAEs loaded, the most allowed"):
        put(store, ADA, folder, "d")


def test_another_model_under_the_same_name(store: SaeStore, tmp_path: Path) -> None:
    put(store, ADA, write_sae(tmp_path / "sae"))
    with pytest.raises(FailedPrecondition, match="loaded onto another model that was served as 'm'"):
        store.of(ADA, replace(INFO, model_hash="other"))["a"]
    assert "a" not in store.of(ADA, replace(INFO, id="n"))


def test_weights_beyond_memory_are_read_again(store: SaeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_BYTES", 1)
    folder = write_sae(tmp_path / "sae")
    put(store, ADA, folder, "a")
    first = store.of(ADA, INFO)["a"]
    assert store.of(ADA, INFO)["a"] is first
    put(store, ADA, folder, "b")
    assert store.of(ADA, INFO)["a"] is not first


def test_too_large(tmp_path: Path) -> None:
    small = SaeStore(State(tmp_path / "state"), max_bytes=100, max_saes=3)
    with pytest.raises(InvalidArgument, match="at most 100 fit"):
        put(small, ADA, write_sae(tmp_path / "sae"))


def test_folders_of_the_server(store: SaeStore, tmp_path: Path) -> None:
    """An admin, and whoever runs a box without users, may name any; others those below the operator's folders."""
    write_sae(tmp_path / "saes" / "deep" / "one")
    outside = write_sae(tmp_path / "elsewhere")
    allowed = (str(tmp_path / "saes"),)

    def load(user: User, source: Path | str, name: str) -> SaeInfo:
        return load_sae(LoadSaeRequest(name, source=str(source)), user, INFO, store, allowed)

    assert load(LOCAL, outside, "").name == "elsewhere"
    assert load(ROOT, outside, "mine").source == str(outside)
    assert load(ADA, "deep/one", "").name == "one"
    assert load(ADA, tmp_path / "saes" / "deep" / "one", "two").name == "two"
    for source in (outside, "../elsewhere", "deep/none", "/etc", "owner/repo"):
        with pytest.raises(PermissionDenied, match="in none of the server's SAE folders"):
            load(ADA, source, "x")
    (tmp_path / "saes" / "link").symlink_to(outside)
    with pytest.raises(PermissionDenied):
        load(ADA, "link", "x")


def test_one_on_the_hub(store: SaeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Hugging Face's own cache, where a download has left it: nothing else of the repository is asked for."""
    import huggingface_hub

    cache = tmp_path / "hub" / "models--owner--saes"
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_sae(cache / "snapshots" / commit / "layer_1" / "width_96")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    item = load_sae(LoadSaeRequest(source="owner/saes/layer_1/width_96"), LOCAL, INFO, store, ())
    assert (item.name, item.site, item.source) == ("width_96", "resid_post.1", "owner/saes/layer_1/width_96")
    pinned = load_sae(LoadSaeRequest("b", source=f"owner/saes@{commit}/layer_1/width_96"), LOCAL, INFO, store, ())
    assert pinned.hash == item.hash
    with pytest.raises(NotFound):
        load_sae(LoadSaeRequest(source="owner/saes/layer_2"), LOCAL, INFO, store, ())
    with pytest.raises(
        Unavailable, match=r"the server has no folder 'saes/layer-15', and from the hub: saes/layer-15 is not"
    ):
        load_sae(LoadSaeRequest(source="saes/layer-15"), LOCAL, INFO, store, ())


def test_another_users_sae_of_the_same_name_blocks_nobody(store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    put(store, ADA, folder, "x")
    put(store, BOB, folder, "x", shared=True)  # he cannot see hers
    store.delete(ADA, "x", "m")
    assert [item.owner for item in store.list(ADA)] == ["bob"]


def test_an_admin_sees_and_unloads_everybodys(store: SaeStore, tmp_path: Path) -> None:
    put(store, ADA, write_sae(tmp_path / "sae"))
    assert [item.owner for item in store.list(ROOT)] == ["ada"]
    assert "a" not in store.of(ROOT, INFO), "seen, but not for use"
    store.delete(ROOT, "a", "")
    assert store.list(ADA) == []


def test_bytes_of_a_user_and_of_the_box(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    store = SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=9, max_all_bytes=130_000)
    small = User("eve", "researcher", UserLimits(store_bytes=60_000))
    put(store, small, folder, "a")
    with pytest.raises(ResourceExhausted, match="of eve's 60,000 are in use by SAEs"):
        put(store, small, folder, "b")
    put(store, ADA, folder, "a")
    with pytest.raises(ResourceExhausted, match="of the box's 130,000 are in use"):
        put(store, BOB, folder, "a")


def test_what_a_dead_process_left_is_cleared(store: SaeStore, tmp_path: Path) -> None:
    put(store, ADA, write_sae(tmp_path / "sae"))
    orphan, young = (tmp_path / "state" / "saes" / name for name in ("sae-0", "sae-1"))
    for folder in (orphan, young):
        folder.mkdir()
    os.utime(orphan, (0, 0))
    again = SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=3)
    assert (orphan.exists(), young.exists()) == (False, True)
    assert again.of(ADA, INFO)["a"].d_sae == 96


def test_unloaded_by_another_process(store: SaeStore, tmp_path: Path) -> None:
    """The gateway deletes; the worker lets go of the weights, and a request that comes too late is told so."""
    put(store, ADA, write_sae(tmp_path / "sae"))
    worker = SaeStore(State(tmp_path / "state"), max_bytes=1 << 20, max_saes=3)
    assert worker.of(ADA, INFO)["a"].d_sae == 96
    store.delete(ADA, "a", "m")
    with pytest.raises(KeyError):
        worker.of(ADA, INFO)["a"]
    put(store, ADA, write_sae(tmp_path / "sae"), "b")
    assert worker.of(ADA, INFO)["b"].name == "b"
    assert len(worker._ready) == 1


@pytest.mark.parametrize("source", ["~nosuchuser/x", "x" * 5000, "gpt2/", "a/", "."])
def test_sources_that_are_none(source: str, store: SaeStore) -> None:
    with pytest.raises((InvalidArgument, NotFound, PermissionDenied)):
        load_sae(LoadSaeRequest("n", source=source), LOCAL, INFO, store, ())


@pytest.mark.parametrize("number", ["123456789012345678901234567890", '"\\ud800"', "[" * 300 + "]" * 300])
def test_a_config_is_kept_as_it_came(number: str, store: SaeStore, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    text = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(text.replace('"metadata": {', f'"metadata": {{"odd": {number}, ', 1))
    put(store, ADA, folder)
    [kept] = (tmp_path / "state" / "saes").iterdir()
    assert (kept / "cfg.json").read_bytes() == (folder / "cfg.json").read_bytes()
