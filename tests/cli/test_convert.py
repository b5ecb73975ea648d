"""`probewire convert` as a user meets it: what it prints, where it writes, and how it ends."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from probewire.backends.checkpoints.conversion.kept import lock_of
from probewire.cli import convert
from probewire.cli.converted import told_of_converted
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


def test_the_cache_is_shown_and_cleaned(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(pickled, other)
    (other / "tokenizer_config.json").write_text("{}")
    assert (convert_with(str(pickled)), convert_with(str(other)), convert_with("--list")) == (0, 0, 0)
    [kept] = (tmp_path / "cache" / "converted").glob("pickled-*")
    n_bytes = sum(file.stat().st_size for file in kept.iterdir())
    out = capsys.readouterr().out
    assert (
        f"{kept.name}\n  {n_bytes / 1e3:.0f} kB, last used 0 days ago\n  made of pickle: pickled\n  from    {pickled}\n"
        in out
    )
    assert f"in 2 folders of {kept.parent}" in out
    assert "2 converted checkpoints take" in told_of_converted(tmp_path / "cache")
    assert convert_with("--clean") == 0
    assert "nothing to remove" in capsys.readouterr().out
    shutil.rmtree(pickled)
    left = kept.with_name(".other-1234.making-5678")
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(5000))
    assert "`probewire convert --clean` removes them" in told_of_converted(tmp_path / "cache")
    assert convert_with("--list") == 0
    assert f"from    {pickled} (gone)" in capsys.readouterr().out
    assert convert_with("--clean") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"removed {kept.name} ({n_bytes / 1e3:.0f} kB): {pickled} is gone",
        "removed what interrupted conversions left (5 kB)",
    ]
    [still] = [path for path in kept.parent.iterdir() if not path.name.startswith(".")]
    assert still.name.startswith("other-")
    assert convert_with("--remove", still.name) == 0
    assert not still.exists()
    assert {path.suffix for path in kept.parent.iterdir()} == {".lock"}
    assert convert_with("--list") == 0
    assert f"nothing is converted in {kept.parent}" in capsys.readouterr().out
    assert told_of_converted(tmp_path / "cache") == ""
    assert convert_with(str(other)) == 0, "what was removed is made again"


def test_what_is_being_written_is_not_removed(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_with(str(pickled)) == 0
    [kept] = (tmp_path / "cache" / "converted").glob("pickled-*")
    with lock_of(kept):
        assert convert_with("--remove", kept.name) == 1
    assert "is being written by another process" in capsys.readouterr().err
    assert kept.is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name what to convert, or give --list"),
        (("--remove", "nothing"), "there is no 'nothing' in"),
        (("--remove", "../.."), "there is no '../..' in"),
        (("--clean", "a-model"), "are about the cache"),
    ],
)
def test_what_cannot_be_done_with_the_cache(
    words: tuple[str, ...], told: str, pickled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_with(*words) == 1
    assert told in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_is_kept(
    pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody has noted where its source lies."""
    assert convert_with(str(pickled)) == 0
    [kept] = (tmp_path / "cache" / "converted").glob("pickled-*")
    kept.with_name(f".{kept.name}.source.json").unlink()
    shutil.rmtree(pickled)
    assert (convert_with("--clean"), convert_with("--list")) == (0, 0)
    assert "from    not known" in capsys.readouterr().out
    assert kept.is_dir()
