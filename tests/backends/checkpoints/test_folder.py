"""Every way in which a folder can be wrong is refused with a message that names it."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from probewire.backends.checkpoints import inspect_folder
from probewire.backends.checkpoints.weight_file import read_weight_file
from probewire.protos.errors import InvalidArgument, NotFound

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def refusal(folder) -> str:
    with pytest.raises(InvalidArgument) as caught:
        inspect_folder(folder)
    return caught.value.message


def shard(folder) -> None:
    """Turn a sound folder into one of two shards."""
    (folder / WEIGHTS).unlink()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for tensor, file in names.items():
        save_file({tensor: np.zeros(4, np.float32)}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def test_a_sound_folder(sound_folder):
    checked = inspect_folder(sound_folder)
    assert checked.model_type == "llama"
    assert [(file.path.name, file.shapes) for file in checked.weights] == [(WEIGHTS, {"w": (2, 3)})]


def test_a_sound_folder_of_shards(sound_folder):
    shard(sound_folder)
    assert [file.path.name[:11] for file in inspect_folder(sound_folder).weights] == ["model-00001", "model-00002"]


def test_no_such_folder(tmp_path):
    with pytest.raises(NotFound, match="there is no file or folder"):
        inspect_folder(tmp_path / "absent")


def test_a_file(sound_folder):
    assert "is a file; give the folder" in refusal(sound_folder / WEIGHTS)


def test_no_model_at_all(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "is not a checkpoint folder: it has no config.json" in refusal(tmp_path)


def test_the_folder_above(sound_folder):
    assert refusal(sound_folder.parent).endswith(f"did you mean {sound_folder}?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "does not hold a JSON object"),
        ("{}", "names no model_type"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        ('{"model_type": "llama", "model_file": "evil.py"}', "asks to run evil.py"),
    ],
)
def test_config(sound_folder, text, reason):
    (sound_folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(sound_folder)
    assert reason in message
    assert str(sound_folder / "config.json") in message


def test_only_pickles(sound_folder):
    (sound_folder / WEIGHTS).rename(sound_folder / "pytorch_model.bin")
    message = refusal(sound_folder)
    assert "pickles (pytorch_model.bin), which can run code and are never loaded" in message
    assert "`probewire convert` reads the tensors" in message


def test_no_weights(sound_folder):
    (sound_folder / WEIGHTS).unlink()
    assert "holds no weights" in refusal(sound_folder)
    (sound_folder / "consolidated.safetensors").touch()
    assert "weights must be named as transformers names them" in refusal(sound_folder)


@pytest.mark.parametrize("lost", [1, 24])
def test_a_cut_file_says_how_many_bytes(sound_folder, lost):
    size = (sound_folder / WEIGHTS).stat().st_size
    os.truncate(sound_folder / WEIGHTS, size - lost)
    assert f"{sound_folder / WEIGHTS} is cut short: {size} bytes expected, {size - lost} found" in refusal(sound_folder)


@pytest.mark.parametrize("length", [0, 5, 30])
def test_a_file_cut_in_its_header(sound_folder, length):
    os.truncate(sound_folder / WEIGHTS, length)
    assert f"{length}" in refusal(sound_folder)


def test_a_file_with_bytes_to_spare(sound_folder):
    with (sound_folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    assert "is too long" in refusal(sound_folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "git lfs pull"),
        (b"<html>not found</html>", "is not a safetensors file"),
        (struct.pack("<Q", 4) + b"nope", "is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "is not a JSON object"),
        (struct.pack("<Q", 9) + b'{"w": {}}', "is not that of a safetensors file"),
        (struct.pack("<Q", 8) + b'{"w": 1}', "is not that of a safetensors file"),
    ],
)
def test_not_safetensors(sound_folder, content, reason):
    (sound_folder / WEIGHTS).write_bytes(content)
    message = refusal(sound_folder)
    assert reason in message
    assert str(sound_folder / WEIGHTS) in message


@pytest.mark.parametrize("offsets", [[0, 16], [4, 12], [0, 4]])
def test_a_header_that_contradicts_itself(tmp_path, offsets):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(InvalidArgument, match="places the tensor w wrongly"):
        read_weight_file(tmp_path / "x.safetensors")


def test_a_missing_shard(sound_folder):
    shard(sound_folder)
    (sound_folder / "model-00002-of-00002.safetensors").unlink()
    assert "lists model-00002-of-00002.safetensors, which is missing" in refusal(sound_folder)


def test_an_index_that_promises_more_tensors(sound_folder):
    shard(sound_folder)
    weight_map = json.loads((sound_folder / INDEX).read_text())["weight_map"]
    (sound_folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {"c": weight_map["a"]}}))
    assert "lists 1 tensors that its files do not hold, c first" in refusal(sound_folder)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../x"}}']
)
def test_a_broken_index(sound_folder, index):
    (sound_folder / INDEX).write_text(index)
    assert INDEX in refusal(sound_folder)


def test_shards_without_their_index(sound_folder):
    shard(sound_folder)
    (sound_folder / INDEX).unlink()
    assert "fetch the index too" in refusal(sound_folder)


def test_a_second_set_of_weights(sound_folder):
    """mlx-lm would load both files, transformers one."""
    shutil.copy(sound_folder / WEIGHTS, sound_folder / "model.fp16.safetensors")
    assert "model.fp16.safetensors besides model.safetensors" in refusal(sound_folder)


def test_no_tokenizer(sound_folder):
    (sound_folder / "tokenizer.json").unlink()
    assert "holds no tokenizer (one of tokenizer.json, " in refusal(sound_folder)
    (sound_folder / "vocab.json").write_text("{}")
    (sound_folder / "merges.txt").touch()
    inspect_folder(sound_folder)


def test_a_cut_tokenizer(sound_folder):
    (sound_folder / "tokenizer.json").write_text('{"model": {')
    assert "tokenizer.json is not valid JSON" in refusal(sound_folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(sound_folder):
    (sound_folder / "config.json").chmod(0)
    assert "cannot be read: Permission denied" in refusal(sound_folder)
