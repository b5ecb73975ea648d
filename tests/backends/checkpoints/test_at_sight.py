"""Broken folders, refused from their small files and headers; and no sound one among them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from probewire.backends.checkpoints.at_sight import refuse_at_sight
from probewire.backends.checkpoints.folder import inspect_folder
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.backends.towers import WRAPPERS, configured
from tests.quantised import both_of_mlx
from tests.tiny_models import FAMILIES, tiny_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory, wrapper: Callable[[str], Path]) -> Path:
    return wrapper("gemma3")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _lose_a_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def _keep(*words: str, but: str = "\0") -> Callable[[Path], None]:
    def keep(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        kept = {
            name: weight for name, weight in weights.items() if any(word in name for word in words) and but not in name
        }
        assert 0 < len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return keep


def _says(**fields: Any) -> Callable[[Path], None]:
    def say(folder: Path) -> None:
        configured(folder, **fields)

    return say


BROKEN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut short": ("llama", _cut, "is cut short"),
    "a shard is missing": ("llama", _lose_a_shard, "lists model-00002-of-00002.safetensors, which is missing"),
    "layers are missing": (
        "llama",
        _keep("", but="layers.2."),
        r"holds no weight of 1 of its 3 layers \(2\); fetch the files that are missing",
    ),
    "a layer between is missing": ("llama", _keep("", but="layers.1."), r"holds no weight of 1 of its 3 layers \(1\)"),
    "a wrapper without its upper layers": (
        "gemma3",
        _keep("", but="language_model.model.layers.1."),
        r"holds no weight of 1 of its 2 layers \(1\)",
    ),
    "a tower without text": ("gemma3", _keep("vision_tower"), "the gemma3 checkpoint holds no text model"),
    "plain weights said to be mlx's": (
        "llama",
        _says(quantization={"group_size": 64, "bits": 4}),
        "says that the weights are quantised",
    ),
    "plain weights said to be fp8": (
        "llama",
        _says(quantization_config={"quant_method": "fp8"}),
        "says that the weights are quantised",
    ),
    "a wrapper that was not compared": (
        "gemma3",
        _says(model_type="of_tomorrow"),
        "the text model of a of_tomorrow checkpoint by itself was not compared",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder(what: str, llama: Path, gemma3: Path, tmp_path: Path) -> None:
    sound, spoil, words = BROKEN[what]
    folder = tmp_path / "broken"
    shutil.copytree({"llama": llama, "gemma3": gemma3}[sound], folder)
    refuse_at_sight(str(folder), "torch")
    spoil(folder)
    with pytest.raises(InvalidArgument, match=words):
        refuse_at_sight(str(folder), "torch")


def test_what_the_backend_has_no_code_for(tmp_path: Path) -> None:
    packed, _ = both_of_mlx("llama", tmp_path, 4)
    refuse_at_sight(str(packed), "mlx")
    with pytest.raises(FailedPrecondition, match=r"use the mlx backend"):
        refuse_at_sight(str(packed), "torch")


def test_an_index_of_pickles_that_are_missing(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"w": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidArgument, match=r"lists 'pytorch_model-00001-of-00001\.bin', which is missing"):
        refuse_at_sight(str(folder), "torch")


@pytest.mark.parametrize("name", ["", "gpt2", "smollm2-135m-instruct", "Qwen/Qwen3-0.6B", "/no/such/folder", "a\0b"])
def test_what_is_no_folder_here_is_left_to_who_fetches_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse_at_sight(name, "torch")


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"gpt_oss"}))  # its tiny one has a set of files a library
def test_a_sound_folder_is_let_through(family: str, tmp_path: Path) -> None:
    refuse_at_sight(str(tiny_checkpoint(family, tmp_path)), "torch")


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_sound_wrapper_is_let_through(kind: str, wrapper: Callable[[str], Path]) -> None:
    refuse_at_sight(str(wrapper(kind)), "torch")


def test_layers_that_are_run_again_count_once(llama: Path, tmp_path: Path) -> None:
    """A model of two stacks, whose config counts how many layers its rows go through."""
    folder = tmp_path / "loops"
    shutil.copytree(llama, folder)
    weights = load_file(folder / "model.safetensors")
    stacks = {
        name.replace("model.layers", f"model.{stack}.layers"): weight.clone()
        for stack in ("low", "high")
        for name, weight in weights.items()
    }
    save_file(stacks, folder / "model.safetensors", metadata={"format": "pt"})
    configured(folder, num_hidden_layers=24)
    assert inspect_folder(folder).config["num_hidden_layers"] == 24


def test_no_array_library_is_loaded(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(llama, folder)
    _says(quantization={"group_size": 64, "bits": 4})(folder)
    code = (
        "import sys; from probewire.backends.checkpoints.at_sight import refuse_at_sight\n"
        "from probewire.protos.errors import InvalidArgument\n"
        f"try: refuse_at_sight({str(folder)!r}, 'torch')\n"
        "except InvalidArgument: print({'torch', 'transformers', 'mlx'} & set(sys.modules))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == "set()"
