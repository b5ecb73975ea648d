"""Where an SAE is loaded from: a folder, the hub, the request itself, or parts sent before; and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probewire.protos.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.protos.saes import MAX_NAME, LoadSaeRequest, SaeFiles, SaeInfo, SaePart
from probewire.server.auth.users import User
from probewire.server.state.database import State
from probewire.server.state.saes import SaeStore
from probewire.server.worker import sae_loading as module
from probewire.server.worker.sae_loading import load_sae
from tests.saes import write_sae

SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))
ADA, ROOT = User("ada", "researcher"), User("root", "admin")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SaeStore]:
    state = State(tmp_path / "state")
    yield SaeStore(state, max_bytes=1 << 20, max_saes=3)
    state.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sae(tmp_path / "folders" / "mine")


def load(store: SaeStore, request: LoadSaeRequest, user: User = ADA, *folders: Path) -> SaeInfo:
    return load_sae(request, user, INFO, store, tuple(map(str, folders)))


def files_of(folder: Path, **more: Any) -> SaeFiles:
    return SaeFiles((folder / "cfg.json").read_text(), **more)


class Hub:
    """Has one repository, on this disk; notes what it was asked for."""

    def __init__(self, snapshot: Path) -> None:
        self.snapshot = snapshot
        self.asked: list[tuple[str, str | None, tuple[str, ...]]] = []
        self.error: Exception | None = None

    def __call__(self, repo: str, revision: str | None, names: tuple[str, ...]) -> Path:
        self.asked.append((repo, revision, names))
        if self.error is not None:
            raise self.error
        return self.snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "snapshot")
    monkeypatch.setattr(module, "hub_files", hub)
    return hub


# ---- folders on the server -------------------------------------------------------------------------------------------


def test_a_folder_of_the_operators_is_for_everybody(store: SaeStore, folder: Path) -> None:
    info = load(store, LoadSaeRequest(source="mine"), ADA, folder.parent)
    assert (info.name, info.site, info.owner, info.source, info.shared) == (
        "mine",
        "resid_post.1",
        "ada",
        "mine",
        False,
    )
    assert info.hash == hashlib.sha256((folder / "sae_weights.safetensors").read_bytes()).hexdigest()
    assert store.list(ADA) == [info]


def test_any_folder_is_for_an_admin_alone(store: SaeStore, folder: Path) -> None:
    assert load(store, LoadSaeRequest(source=str(folder)), ROOT).name == "mine"
    with pytest.raises(PermissionDenied, match="is in none of the server's SAE folders"):
        load(store, LoadSaeRequest(source=str(folder)), ADA)
    assert store.list(ADA) == []


def test_name_site_dtype_and_sharing_are_as_they_are_asked_for(store: SaeStore, folder: Path) -> None:
    request = LoadSaeRequest("other", source=f"{folder}/", site="resid_post.2", dtype="bfloat16", shared=True)
    info = load(store, request, ROOT)
    assert (info.name, info.site, info.own_site, info.dtype, info.shared) == (
        "other",
        "resid_post.2",
        "resid_post.1",
        "bfloat16",
        True,
    )


def test_a_folder_whose_own_name_is_too_long_needs_another(store: SaeStore, tmp_path: Path) -> None:
    long = write_sae(tmp_path / ("x" * (MAX_NAME + 1)))
    with pytest.raises(InvalidArgument, match="give the SAE a name of up to"):
        load(store, LoadSaeRequest(source=str(long)), ROOT)
    assert load(store, LoadSaeRequest("short", source=str(long)), ROOT).name == "short"


def test_an_sae_that_cannot_act_on_its_site_leaves_nothing(store: SaeStore, tmp_path: Path) -> None:
    wide = write_sae(tmp_path / "wide", d_in=32)
    with pytest.raises(InvalidArgument) as caught:
        load(store, LoadSaeRequest(source=str(wide)), ROOT)
    assert caught.value.message.startswith(f"the SAE {wide}")
    assert store.list(ROOT) == []
    assert list((tmp_path / "state" / "saes").iterdir()) == []


def test_a_folder_without_an_sae_is_refused(store: SaeStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"has no cfg\.json and no sae_weights\.safetensors"):
        load(store, LoadSaeRequest(source=str(tmp_path / "empty")), ROOT)
    with pytest.raises(NotFound, match="is not there on the server"):
        load(store, LoadSaeRequest(source=str(tmp_path / "none")), ROOT)


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "repo", "revision", "path"),
    [
        ("org/saes", "org/saes", None, ""),
        ("org/saes@v1", "org/saes", "v1", ""),
        ("org/saes/layer_1/width", "org/saes", None, "layer_1/width"),
        ("org/saes@v1/layer_1/", "org/saes", "v1", "layer_1"),
    ],
)
def test_a_source_on_the_hub_is_a_repository_a_revision_and_a_path(
    store: SaeStore, hub: Hub, source: str, repo: str, revision: str | None, path: str
) -> None:
    write_sae(hub.snapshot / path)
    info = load(store, LoadSaeRequest(source=source), ROOT)
    inside = f"{path}/" if path else ""
    assert hub.asked == [(repo, revision, (f"{inside}cfg.json", f"{inside}sae_weights.safetensors"))]
    assert (info.source, info.name) == (source, source.rstrip("/").rpartition("/")[2])


def test_the_hubs_refusal_says_that_there_is_no_such_folder_either(store: SaeStore, hub: Hub) -> None:
    for error in (NotFound("no repository 'org/saes'"), Unavailable("the hub does not answer")):
        hub.error = error
        with pytest.raises(type(error)) as caught:
            load(store, LoadSaeRequest(source="org/saes"), ROOT)
        assert caught.value.message == f"the server has no folder 'org/saes', and from the hub: {error.message}"


@pytest.mark.parametrize("source", ["org//saes", "org/saes//x"])
def test_a_source_with_an_empty_part_is_neither(store: SaeStore, hub: Hub, source: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        load(store, LoadSaeRequest(source=source), ROOT)
    assert caught.value.message == (
        f"{source!r} is neither a folder on the server nor owner/repo[@revision]/path on the hub"
    )
    assert hub.asked == []


def test_the_hub_is_for_admins(store: SaeStore, hub: Hub) -> None:
    with pytest.raises(PermissionDenied):
        load(store, LoadSaeRequest(source="org/saes"), ADA)
    assert hub.asked == []


# ---- sent along ------------------------------------------------------------------------------------------------------


def test_an_sae_may_be_sent_along(store: SaeStore, folder: Path) -> None:
    weights = (folder / "sae_weights.safetensors").read_bytes()
    info = load(store, LoadSaeRequest("a", files=files_of(folder, weights=weights)))
    assert (info.name, info.source, info.owner) == ("a", "sent along", "ada")


def test_one_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path, folder: Path) -> None:
    state = State(tmp_path / "small")
    small = SaeStore(state, max_bytes=1000, max_saes=3)
    with pytest.raises(InvalidArgument, match=r"the SAE has [\d,]+ bytes; at most 1,000 fit"):
        load(small, LoadSaeRequest("a", files=files_of(folder, weights=bytes(1001))))
    state.close()


def test_one_that_was_sent_in_parts_is_loaded_once_and_the_parts_forgotten(store: SaeStore, folder: Path) -> None:
    weights = (folder / "sae_weights.safetensors").read_bytes()
    upload = hashlib.sha256(weights).hexdigest()
    request = LoadSaeRequest("a", files=files_of(folder, upload=upload))
    with pytest.raises(NotFound):
        load(store, request)
    half = len(weights) // 2
    store.receive(ADA, SaePart(upload, len(weights), 0, weights[:half]))
    store.receive(ADA, SaePart(upload, len(weights), half, weights[half:]))
    with pytest.raises(NotFound):
        load(store, request, User("bob", "researcher"))
    assert load(store, request).hash == upload
    assert store.uploads.size(ADA, upload) == 0
    again = LoadSaeRequest("b", files=files_of(folder, upload=upload))
    assert load(store, again).hash == upload, "weights that are loaded need not be sent again"


def test_half_of_an_sae_is_none(store: SaeStore, folder: Path) -> None:
    weights = (folder / "sae_weights.safetensors").read_bytes()
    upload = hashlib.sha256(weights).hexdigest()
    store.receive(ADA, SaePart(upload, len(weights), 0, weights[: len(weights) // 2]))
    with pytest.raises(InvalidArgument):
        load(store, LoadSaeRequest("a", files=files_of(folder, upload=upload)))
    assert store.list(ADA) == []


def test_parts_of_an_sae_that_is_refused_are_kept_for_another_try(store: SaeStore, folder: Path) -> None:
    weights = (folder / "sae_weights.safetensors").read_bytes()
    upload = hashlib.sha256(weights).hexdigest()
    store.receive(ADA, SaePart(upload, len(weights), 0, weights))
    with pytest.raises(InvalidArgument):
        load(store, LoadSaeRequest("a", files=files_of(folder, upload=upload), site="resid_post.9"))
    assert load(store, LoadSaeRequest("a", files=files_of(folder, upload=upload))).site == "resid_post.1"
