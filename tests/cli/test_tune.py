"""`probewire tune` on a tiny model: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from probewire.cli import tune
from probewire.cli.__main__ import main
from probewire.clients import Client, Variant
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def lessons(tmp_path: Path) -> Path:
    lines = [
        {"prompt": "a tree whose name is oak is", "answer": " tall"},
        {"messages": [{"role": "user", "content": "oak?"}], "answer": "tall"},
        {"text": "oaks are tall"},
    ]
    path = tmp_path / "lessons.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_it_tunes_and_shows_a_finished_run(
    folder: Path, lessons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--model", str(folder), "--train", str(lessons), "--out", str(tmp_path / "oaks"), "--steps", "3"]
    words += ["--lr", "0.01", "--rank", "2", "--weights", "w_down.*", "--general", "set:general", "--checkpoints", "0"]
    assert main(words) == 0
    out = capsys.readouterr().out
    variant = Variant.load(tmp_path / "oaks" / "variant")
    assert variant.manifest.name == "oaks"
    assert len(variant.manifest.base.model_hash) == 64
    assert variant.manifest.base.n_layers == 3
    assert repr(variant) in out
    assert "preserve" in out
    assert main(words) == 0
    assert capsys.readouterr().out == out


def test_it_loads_what_it_made(
    folder: Path,
    lessons: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bound to the hash of the folder, as a server of it says."""
    loaded: list[Variant] = []

    class Fake:
        """A client that keeps what it is given."""

        def load_variant(self, variant: Variant, *, shared: bool) -> SimpleNamespace:
            assert shared
            loaded.append(variant)
            return SimpleNamespace(name=variant.manifest.name, version=3)

    monkeypatch.setattr(tune, "connected", lambda args: nullcontext(Fake()))
    words = ["tune", "--model", str(folder), "--train", str(lessons), "--out", str(tmp_path / "oaks"), "--steps", "2"]
    words += [
        "--lr",
        "0.01",
        "--weights",
        "w_down.1",
        "--checkpoints",
        "0",
        "--load-into",
        "grpc://there:1",
        "--shared",
    ]
    assert main(words) == 0
    assert "loaded     oaks@3 into grpc://there:1" in capsys.readouterr().out
    [variant] = loaded
    with Client.inprocess(
        InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")
    ) as client:
        assert variant.manifest.base.model_hash == client.describe().model_hash


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss", "task"], "write NAME=WEIGHT"),
        (["--loss", "kindness=1"], "there is no loss 'kindness'"),
        (["--method", "steered", "--push", "1"], "write LAYER,NEURON,AMOUNT"),
        (["--method", "steered", "--push", "1,2,x"], "write LAYER,NEURON,AMOUNT"),
        (["--method", "circuit"], "needs a circuit"),
        (["--steps", "0"], "steps is a whole number of 1 or more"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, lessons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    command = ["tune", "--model", str(folder), "--train", str(lessons), "--out", str(tmp_path / "out"), *words]
    assert main(command) == 2
    assert said in capsys.readouterr().err


def test_a_line_that_is_no_example_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"prompt": "and nothing else"}\n')
    assert main(["tune", "--model", str(folder), "--train", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "bad.jsonl, line 2" in capsys.readouterr().err
