"""`probewire circuit`: exit codes, the last line, and a library from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, Origin, ablated, head_space, judge
from probewire.analysis.library import CircuitLibrary
from probewire.analysis.tasks import Example, Task, fit, save_task
from probewire.cli.__main__ import main
from probewire.cli.circuit import library as circuit_library, qa as circuit_qa
from probewire.clients import Client
from probewire.protos.errors import Unavailable
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint


def _examples() -> tuple[Example, ...]:
    rng = np.random.default_rng(3)
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(16)]
    return tuple(
        Example(f"{word}x", f"{word}y", ("t",), ("u",), labels={"half": str(i % 2)}) for i, word in enumerate(words)
    )


TASK = Task("letters", _examples())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def _served(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever --url says, the tiny model in this process answers."""

    def connected(*_: Any, **__: Any) -> Client:
        return Client.inprocess(
            InProcessService.create(str(checkpoint), backend="torch", dtype="float32", device="cpu")
        )

    for module in (circuit_qa, circuit_library):
        monkeypatch.setattr(module, "connected", connected)


@pytest.fixture(scope="module")
def files(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A circuit of two heads that is none, and its task."""
    folder = tmp_path_factory.mktemp("files")
    with Client.inprocess(InProcessService.create(str(checkpoint), dtype="float32", device="cpu")) as client:
        info = client.describe()
        space, task = head_space(info), fit(TASK.where(half="0"), client, 3)
        mask = np.zeros(space.shape, dtype=bool)
        mask[0, :2] = True
        model = ablated(client, task.clean, task.corrupt, task.metrics, space, progress=False)
        origin = Origin(model=info.id, model_hash=info.model_hash, task="letters", seeds=(0,))
        circuit = judge(model, Circuit.of(space, mask, mask.astype(float), origin)).with_card(name="two-heads")
    return str(circuit.save(folder / "circuit.json")), str(save_task(TASK, folder / "task.json"))


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_circuit_that_is_none_fails_and_one_can_read_why(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit, task = files
    library = CircuitLibrary(tmp_path / "library")
    library.add(Circuit.load(circuit))
    out, page = tmp_path / "qa.json", tmp_path / "qa.html"
    options = [
        "--task",
        task,
        "--found-on",
        "half=0",
        "--n",
        "4",
        "--sets",
        "2",
        "--out",
        str(out),
        "--html",
        str(page),
    ]
    assert main(["circuit", "qa", "two-heads", "--library", str(tmp_path / "library"), "--level", "3", *options]) == 1
    told = said(capsys)
    assert (told["verdict"], told["asked"], told["circuit"]) == ("fail", 3, Circuit.load(circuit).id)
    assert json.loads(out.read_text())["level"] == told["level"]
    assert "Checks of two-heads" in page.read_text()
    [entry] = library.get("two-heads").card.validation
    assert entry["sha256"] == told["sha256"]


def test_wrong_use_and_what_cannot_be_measured(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit, task = files
    assert main(["circuit", "qa", "none.json", "--task", task]) == 2
    assert "there is no file none.json" in capsys.readouterr().err
    assert main(["circuit", "qa", circuit, "--task", task, "--found-on", "half"]) == 2
    assert "write LABEL=VALUE" in capsys.readouterr().err

    def away(*_: Any, **__: Any) -> Client:
        raise Unavailable("nobody answers at grpc://127.0.0.1:1")

    monkeypatch.setattr(circuit_qa, "connected", away)
    assert main(["circuit", "qa", circuit, "--task", task]) == 4
    assert said(capsys) == {
        "circuit": Circuit.load(circuit).id,
        "verdict": "not measured",
        "why": "nobody answers at grpc://127.0.0.1:1",
    }


def test_a_library(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "library")

    def library(*arguments: str) -> str:
        assert main(["circuit", "library", folder, *arguments]) == 0
        return capsys.readouterr().out

    added = library("add", files[0], "--name", "pair", "--category", "letters/toys")
    assert added.split()[1:] == ["pair", "1"]
    assert "pair 1  level 0  2 units" in library("search", "--contains", "z.0 head 1")
    assert library("search", "--min-level", "1") == "nothing fits\n"
    assert "# pair" in library("show", "pair@1")
    assert library("diff", "pair", "pair").startswith("Difference(+0 −0 units, 2 shared")
    table, graph = str(tmp_path / "units.csv"), str(tmp_path / "graph.json")
    library("export", "pair", "--out", table)
    library("export", "pair", "--out", graph, "--format", "eap-ig")
    assert library("add", graph, "--name", "from-eap-ig", "--from-model").split()[1] == "from-eap-ig"
    assert library("index", "--out", str(tmp_path / "index.html")).strip().endswith("index.html")
    assert main(["circuit", "library", folder, "add", table, "--name", "again"]) == 2
    assert "does not say what its units were chosen from" in capsys.readouterr().err
