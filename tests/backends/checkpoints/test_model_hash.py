"""The hash follows every byte of config and weights, and is kept outside the user's folder."""

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from probewire.backends.checkpoints import inspect_folder, model_hash
from probewire.backends.checkpoints.progress import Progress


@pytest.fixture
def hash_of(sound_folder, tmp_path):
    def compute(report=lambda _: None) -> str:
        return model_hash(inspect_folder(sound_folder), tmp_path / "cache", report)

    return compute


def test_worked_out_by_hand(hash_of, sound_folder):
    weights = (sound_folder / "model.safetensors").read_bytes()
    entry = json.dumps(["model.safetensors", len(weights), hashlib.sha256(weights).hexdigest()])
    expected = hashlib.sha256((sound_folder / "config.json").read_bytes() + entry.encode()).hexdigest()
    assert hash_of() == expected


def test_the_second_time_reads_no_weights(hash_of, sound_folder):
    before = sorted(sound_folder.iterdir())
    seen: list[Progress] = []
    first = hash_of(seen.append)
    assert seen
    seen.clear()
    assert hash_of(seen.append) == first
    assert seen == []
    assert sorted(sound_folder.iterdir()) == before


def test_a_change_of_weights_is_seen(hash_of, sound_folder):
    first = hash_of()
    save_file({"w": np.ones((2, 3), np.float32)}, sound_folder / "model.safetensors")
    stat = (sound_folder / "model.safetensors").stat()
    os.utime(sound_folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert hash_of() != first


def test_a_change_of_config_is_seen(hash_of, sound_folder):
    first = hash_of()
    (sound_folder / "config.json").write_text('{"model_type": "llama", "rope_theta": 1}')
    assert hash_of() != first


def test_the_same_bytes_elsewhere_have_the_same_hash(hash_of, sound_folder, tmp_path):
    first = hash_of()
    moved = sound_folder.rename(tmp_path / "moved")
    assert model_hash(inspect_folder(moved), tmp_path / "cache") == first


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"model.safetensors": {}}', '{"model.safetensors": 3}', '{"model.safetensors": [1, 2]}']
)
def test_a_spoilt_sidecar_is_ignored(hash_of, tmp_path, content):
    first = hash_of()
    (sidecar,) = (tmp_path / "cache" / "hashes").iterdir()
    sidecar.write_text(content)
    assert hash_of() == first


def test_a_cache_folder_that_cannot_be_written(hash_of, tmp_path):
    (tmp_path / "cache").touch()
    assert len(hash_of()) == 64
