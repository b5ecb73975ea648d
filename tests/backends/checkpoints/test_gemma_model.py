"""Gemma 3 270M by its name: never fetched unasked, and never mistaken for what the hub has."""

from __future__ import annotations

from pathlib import Path

import pytest

from probewire.backends.checkpoints import GEMMA_ID, gemma_model, licence_of, resolve_model
from probewire.backends.checkpoints.gemma_model import is_gemma
from probewire.protos.errors import FailedPrecondition, InvalidArgument


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("fetched unasked")

    monkeypatch.setattr(gemma_model, "packaged_folder", refused)


def test_names() -> None:
    assert is_gemma(GEMMA_ID)
    assert is_gemma("Gemma-3-270M")
    assert not any(is_gemma(name) for name in (None, "", "google/gemma-3-270m", "gemma-3-270m-it"))
    assert "https://ai.google.dev/gemma/terms" in licence_of(GEMMA_ID)
    assert not licence_of(None)


def test_whoever_did_not_see_the_terms_is_told_how(tmp_path: Path) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"`probewire pull gemma-3-270m` fetches it .*https://ai.google.dev/gemma"
    ):
        resolve_model(GEMMA_ID, cache_dir=tmp_path)


def test_it_has_one_version(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="one version only"):
        resolve_model(GEMMA_ID, revision="main", cache_dir=tmp_path)


def test_a_folder_of_that_name_is_that_folder(
    sound_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound_folder.rename(tmp_path / GEMMA_ID)
    monkeypatch.chdir(tmp_path)
    found = resolve_model(GEMMA_ID, cache_dir=tmp_path / "cache", licensed=True)
    assert (found.source, found.folder) == ("local", tmp_path / GEMMA_ID)


def test_parts_that_join_to_another_file(tmp_path: Path) -> None:
    members = [tmp_path / "wheels" / name for name in ("GEMMA_TERMS.html", "NOTICE.md", "a", "b")]
    members[0].parent.mkdir()
    for member in members:
        member.write_bytes(b"x")
    with pytest.raises(FailedPrecondition, match="join to sha256"):
        gemma_model._write(tmp_path, members, lambda _: None)
