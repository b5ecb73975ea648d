"""A conversion is whole or not there: full disks, two at once, killed ones, big ones, and what the cache keeps."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from probewire.backends.checkpoints import Progress, convert_model, inspect_folder, resolve_model
from probewire.backends.checkpoints.conversion import convert, write
from probewire.backends.checkpoints.conversion.source import FileTensors, Planned
from probewire.backends.checkpoints.progress import ignore_progress
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.backends.checkpoints.conversion.kinds import KINDS, packer
from tests.backends.checkpoints.conversion.packers import pack_folder


@pytest.fixture
def packed(plain: Path, tmp_path: Path) -> Path:
    pack_folder(plain, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"))
    return tmp_path / "packed"


def made(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("converted/*") if path.suffix != ".lock"]


def test_once_and_then_from_the_cache(packed: Path, cache: Path) -> None:
    seen: list[Progress] = []
    first = resolve_model(str(packed), cache_dir=cache, progress=seen.append)
    size = sum(file.n_bytes for file in inspect_folder(first.folder).weights)
    stages = [progress for progress in seen if progress.stage == "convert"]
    assert (stages[0].done, stages[-1].done) == (0, stages[-1].total)
    assert 0.99 * size < stages[-1].done < size
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    seen.clear()
    second = resolve_model(str(packed), cache_dir=cache, progress=seen.append)
    assert (second, (second.folder / "model.safetensors").stat().st_mtime_ns) == (first, stamp)
    assert [progress.stage for progress in seen] == ["done"]


def test_a_plain_folder_stays_where_it_is(plain: Path, cache: Path) -> None:
    assert resolve_model(str(plain), cache_dir=cache).folder == plain
    assert made(cache) == []


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_a_source_that_changes_is_another(file: str, packed: Path, cache: Path) -> None:
    first = resolve_model(str(packed), cache_dir=cache)
    if file.endswith("json"):
        content = json.loads((packed / file).read_text())
        (packed / file).write_text(json.dumps({**content, "rope_theta": 600.0, "model_max_length": 8}))
    else:
        data = bytearray((packed / file).read_bytes())
        data[-1] ^= 1
        (packed / file).write_bytes(data)
    second = resolve_model(str(packed), cache_dir=cache)
    assert second.folder != first.folder
    assert second.model_hash != first.model_hash


def test_the_record_says_where_it_came_from(packed: Path, cache: Path) -> None:
    found = resolve_model(str(packed), cache_dir=cache)
    record = json.loads((found.folder / "probewire.json").read_text())
    assert (record["kind"], record["dtype"], record["sources"][0]["name"]) == ("gptq", "auto", "packed")
    assert set(record["sources"][0]["files"]) >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert str(packed) not in json.dumps(record), "no path of this machine"


def test_a_damaged_result_is_made_again(packed: Path, cache: Path) -> None:
    found = resolve_model(str(packed), cache_dir=cache)
    good = (found.folder / "model.safetensors").read_bytes()
    (found.folder / "model.safetensors").write_bytes(good[:-1])
    assert resolve_model(str(packed), cache_dir=cache).folder == found.folder
    assert (found.folder / "model.safetensors").read_bytes() == good


def test_a_disk_that_is_too_small(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(packed)._replace(free=1000)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FailedPrecondition, match=r"takes 0\.00 GB, and there are 0\.00 GB free where .* make room"):
        resolve_model(str(packed), cache_dir=cache)
    assert made(cache) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fills_up_on_the_way(
    code: int, packed: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(planned: Planned) -> Any:
        if planned.name.endswith("down_proj.weight"):
            raise OSError(code, "the disk's own words")
        return whole(planned)

    whole = write._bytes_of
    monkeypatch.setattr(write, "_bytes_of", full)
    words = "the disk is full" if code == errno.ENOSPC else "the disk's own words"
    for out in (None, tmp_path / "out"):
        with pytest.raises(FailedPrecondition, match=f"cannot be written: {words}; nothing was left behind"):
            convert_model(str(packed), out, cache_dir=cache)
    assert made(cache) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "packed"]


def test_an_interrupted_one_leaves_nothing(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Planned) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_bytes_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve_model(str(packed), cache_dir=cache)
    assert made(cache) == []


def test_what_a_killed_one_left_is_cleared(packed: Path, cache: Path) -> None:
    folder = resolve_model(str(packed), cache_dir=cache).folder
    left = folder.with_name(f".{folder.name}.making-0123abcd")
    folder.rename(left)
    assert resolve_model(str(packed), cache_dir=cache).folder == folder
    assert not left.exists()


def test_two_processes_at_once_make_one(packed: Path, cache: Path) -> None:
    script = (
        "import sys; from probewire.backends.checkpoints import resolve_model\n"
        "from pathlib import Path; print(resolve_model(sys.argv[1], cache_dir=Path(sys.argv[2])).model_hash)"
    )
    command = [sys.executable, "-c", script, str(packed), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    hashes = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(hashes) == 1
    assert len([name for name in made(cache) if not name.startswith(".")]) == 1


def test_the_second_waits_and_says_so(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, calls = threading.Event(), threading.Event(), list[str]()
    write_it = convert.WRITERS["gptq"]

    def slow(job: convert.Job, out: Path, report: Any) -> None:
        calls.append(job.name)
        began.set()
        go_on.wait(20)
        write_it(job, out, report)

    monkeypatch.setitem(convert.WRITERS, "gptq", slow)
    first = threading.Thread(target=lambda: resolve_model(str(packed), cache_dir=cache))
    first.start()
    assert began.wait(20)
    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        seen.append(progress)
        if progress.stage == "wait":
            go_on.set()

    resolve_model(str(packed), cache_dir=cache, progress=report)
    first.join(20)
    assert "wait" in [progress.stage for progress in seen]
    assert calls == ["packed"]


def test_of_two_into_one_folder_one_wins(
    packed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_it, out = convert.WRITERS["gptq"], tmp_path / "out"

    def overtaken(job: convert.Job, making: Path, report: Any) -> None:
        write_it(job, making, report)
        out.mkdir()
        (out / "config.json").write_text("another's")

    monkeypatch.setitem(convert.WRITERS, "gptq", overtaken)
    with pytest.raises(FailedPrecondition, match="was made by somebody else meanwhile"):
        convert_model(str(packed), out, cache_dir=cache)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "packed"]


def test_a_folder_that_is_taken(packed: Path, plain: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is there already and is no empty folder"):
        convert_model(str(packed), packed, cache_dir=cache)
    (tmp_path / "empty").mkdir()
    assert convert_model(str(packed), tmp_path / "empty", cache_dir=cache).folder == tmp_path / "empty"
    for out in (None, tmp_path / "other"):
        with pytest.raises(InvalidArgument, match="needs no converting: nothing was written"):
            convert_model(str(plain), out, cache_dir=cache)


def test_what_is_no_checkpoint(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"it has no config\.json"):
        convert_model(str(tmp_path / "empty"), tmp_path / "out", cache_dir=cache)


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (
            {"quantization": {"group_size": 64, "bits": 4}},
            r"says that the weights are quantised \(mlx 4 bit, group 64\)",
        ),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            r"is quantised \(hqq\) in a way that is not converted; gptq, awq, ",
        ),
    ],
)
def test_other_ways_are_named(says: Any, words: str, plain: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(plain, tmp_path / "other")
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | says))
    for out in (None, tmp_path / "out"):
        with pytest.raises(InvalidArgument, match=words):
            convert_model(str(tmp_path / "other"), out, cache_dir=cache)


def test_a_base_for_what_is_no_adapter(packed: Path, plain: Path, cache: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"a base was given .* is no adapter"):
        convert_model(str(packed), base=str(plain), cache_dir=cache)


def test_without_a_tokenizer_nothing_is_begun(packed: Path, cache: Path) -> None:
    (packed / "tokenizer.json").unlink()
    with pytest.raises(InvalidArgument, match="packed holds no tokenizer"):
        resolve_model(str(packed), cache_dir=cache)


def test_a_cache_that_cannot_be_used(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"cannot be used: .*--cache-dir, or convert with `probewire convert"):
        resolve_model(str(packed), cache_dir=tmp_path / "file")


def test_a_large_one_is_sharded_one_tensor_at_a_time(
    packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(resolve_model(str(packed), cache_dir=cache).folder / "model.safetensors")
    monkeypatch.setattr(write, "MOST_SHARD_BYTES", 60_000)
    shutil.rmtree(cache)
    folder = resolve_model(str(packed), cache_dir=cache).folder
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 5
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [sum(a.nbytes for a in load_file(folder / name).values()) for name in files]
    assert max(sizes) <= max(60_000, *(weight.nbytes for weight in whole.values()))
    found = FileTensors.of(folder)
    assert found.stored.keys() == whole.keys()
    for name, weight in whole.items():
        np.testing.assert_array_equal(found.get(name), weight)


def test_tensors_of_every_dtype_are_aligned_and_read_by_the_library(tmp_path: Path) -> None:
    """An odd number of bytes before floats: safetensors' own reader and torch's take them."""
    import safetensors.torch

    arrays: dict[str, tuple[str, Any]] = {
        "a": ("BOOL", np.array([True, False, True])),
        "b": ("F32", np.float32(3.5)),
        "c": ("I64", np.arange(3)),
        "d": ("F16", np.ones((0, 4), np.float16)),
        "e": ("BF16", np.ones(5, np.float32)),
    }
    plan = [Planned(name, kind, np.shape(a), lambda a=a: np.asarray(a), False) for name, (kind, a) in arrays.items()]
    write.write_weights(tmp_path, plan, ignore_progress)
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {name: (tuple(t.shape), t.double().tolist()) for name, t in found.items()} == {
        name: (np.shape(a), np.asarray(a, np.float64).tolist()) for name, (_, a) in arrays.items()
    }
    assert found["e"].dtype == torch.bfloat16
