"""`probewire variant assess` and `validate`: exit codes, the last line, what is written beside a variant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.reports import validation
from probewire.analysis.reports.statistics import paired
from probewire.analysis.reports.validation import ValidationReport
from probewire.analysis.reports.verdicts import judged, overall
from probewire.cli.__main__ import main
from probewire.cli.variant import assess, validate
from probewire.clients import Client, Delta, Variant
from probewire.protos.errors import Unavailable
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessService]:
    folder = tiny_checkpoint(
        "llama", tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB_SIZE, max_position_embeddings=512
    )
    tokenizer_folder("byte_level", folder)
    service = InProcessService.create(str(folder), dtype="float32", device="cpu")
    yield service
    service.close()


class _Lent(Client):
    """A client whose end is not the service's."""

    def close(self) -> None:
        return


@pytest.fixture(autouse=True)
def _served(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever --url says, the tiny model in this process answers."""
    lent = _Lent.inprocess(service)
    for module in (assess, validate):
        monkeypatch.setattr(module, "connected", lambda *_, **__: lent)


@pytest.fixture
def folder(service: InProcessService, tmp_path: Path) -> Path:
    info, rng = service.describe(""), np.random.default_rng(0)
    made = Delta(rng.normal(size=(info.d_mlp, 1)) * 0.01, rng.normal(size=(1, info.d_model)))
    return Variant({"w_down.1": made}).named("mild").bound(info).save(tmp_path / "mild")


def _last(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_level_that_passes_and_one_that_does_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report lies beside the variant, the manifest has its hash, and the variant is still itself."""
    before = Variant.load(folder).hash
    assert main(["variant", "assess", str(folder), "--no-dry-run", "--max-risk", "critical"]) == 0
    told = _last(capsys)
    assert (told["verdict"], told["hash"]) == ("pass", before)
    report = json.loads((folder / "risk.json").read_text())
    assert report["level"] == told["level"]
    variant = Variant.load(folder)
    assert variant.hash == before
    assert variant.manifest.reports == {"risk.json": sha256((folder / "risk.json").read_bytes()).hexdigest()}
    if told["level"] != "low":
        assert main(["variant", "assess", str(folder), "--no-dry-run", "--max-risk", "low"]) == 1
        assert _last(capsys)["verdict"] == "fail"


def test_what_is_wrong_use_and_what_could_not_be_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["variant", "assess", str(folder / "nowhere")]) == 2
    assert main(["variant", "validate", "unheard-of"]) == 2
    assert "unheard-of" in capsys.readouterr().err

    def gone(*_: Any, **__: Any) -> Client:
        raise Unavailable("no server answers")

    for module, name in ((assess, "assess"), (validate, "validate")):
        monkeypatch.setattr(module, "connected", gone)
        assert main(["variant", name, str(folder)]) == 4
        assert _last(capsys) == {"variant": str(folder), "verdict": "not measured", "why": "no server answers"}


@pytest.mark.parametrize(
    ("lost", "n", "options", "status"),
    [
        (0, 400, [], 0),
        (100, 400, [], 1),
        (0, 20, [], 3),
        (0, 20, ["--allow-inconclusive"], 0),
        (10, 20, ["--allow-inconclusive"], 1),
    ],
)
def test_a_verdict_is_an_exit_code(
    lost: int,
    n: int,
    options: list[str],
    status: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = np.ones(n, dtype=bool)
    check = judged("capitals", paired(base, np.arange(n) >= lost), -0.02, suite="tasks")
    about = {
        "base": {"id": "m", "model_hash": "f"},
        "variant": {"name": "mild", "hash": "h"},
        "seed": 0,
        "seconds": 0.0,
    }
    report = ValidationReport((check,), overall([check]), about)
    monkeypatch.setattr(validation, "validate_variant", lambda *_, **__: report)
    assert main(["variant", "validate", str(folder), *options]) == status
    told = _last(capsys)
    assert told["suites"] == {"tasks": told["verdict"]}
    assert set(told["files"]) == {"validation.json", "validation.html"}
