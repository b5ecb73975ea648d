"""`probewire convert` as a user meets it: what it prints, where it writes, and how it ends."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probewire.cli import convert
from tests.tiny_models import tiny_checkpoint


def convert_with(*words: str) -> int:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    return convert.run(parser.parse_args(words))


@pytest.fixture
def pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a pickle alone, and a cache beside it."""
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint("llama", tmp_path), folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setenv("PROBEWIRE_CACHE", str(tmp_path / "cache"))
    return folder


def test_into_a_folder(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_with(str(pickled), "--out", str(tmp_path / "out"), "--dtype", "bfloat16") == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"pickled is converted in {tmp_path / 'out'}"
    assert out.splitlines()[1].startswith("model hash ")
    assert out.splitlines()[2] == f"next:      probewire serve {tmp_path / 'out'}"
    assert "Converting …" in err
    assert load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_into_the_cache(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_with(str(pickled)) == 0
    first = capsys.readouterr().out
    assert str(tmp_path / "cache" / "converted" / "pickled-") in first
    assert convert_with(str(pickled)) == 0
    second = capsys.readouterr().out
    assert "pickled is converted in" in first
    assert second == first.replace("is converted", "was already converted")
    assert second.splitlines()[2] == f"next:      probewire serve {pickled}"
    assert convert_with(str(pickled), "--dtype", "float16", "--cache-dir", str(tmp_path / "a cache")) == 0
    assert f"next:      probewire serve '{tmp_path}/a cache/converted/pickled-" in capsys.readouterr().out
    assert convert_with(str(pickled), "--cache-dir", str(tmp_path / "a cache")) == 0
    assert f"next:      probewire serve {pickled} --cache-dir '{tmp_path}/a cache'" in capsys.readouterr().out


def test_what_is_plain_is_told_how_to_have_another_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tiny_checkpoint("llama", tmp_path)
    assert convert_with(str(plain), "--dtype", "bfloat16", "--cache-dir", str(tmp_path / "cache")) == 1
    assert f"nothing was written; `probewire serve {plain} --dtype bfloat16`" in capsys.readouterr().err


def test_a_missing_file_is_no_model_of_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_with("tiny.Q4_0.gguf", "--cache-dir", str(tmp_path)) == 1
    assert capsys.readouterr().err == (
        "probewire convert: there is no file or folder 'tiny.Q4_0.gguf'; check the path\n"
    )


def test_an_error_is_one_line(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pickled / "pytorch_model.bin").write_bytes(b"no")
    assert convert_with(str(pickled), "--out", str(tmp_path / "out")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "…" not in line or ":" in line]
    assert line.startswith("probewire convert: ")
    assert not (tmp_path / "out").exists()


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def convert_model(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert_model", convert_model)
    assert convert_with("somewhere") == 130
    assert "nothing was left behind" in capsys.readouterr().err
