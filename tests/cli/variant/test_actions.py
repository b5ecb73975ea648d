"""`probewire variant`: on a server and on folders, as somebody types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.cli.__main__ import main
from probewire.cli.variant import served
from probewire.clients import Client, Delta, Variant
from probewire.protos.variants.manifest import Base, Manifest
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def client(checkpoint: Path) -> Iterator[Client]:
    with Client.inprocess(InProcessService.create(str(checkpoint), dtype="float32", device="cpu")) as made:
        yield made


def variant(client: Client, seed: int, name: str) -> Variant:
    rng = np.random.default_rng(seed)
    deltas = {"w_q.0": Delta(rng.normal(size=(64, 2)), rng.normal(size=(2, 64)))}
    return Variant(deltas, manifest=Manifest(name=name, base=Base.of(client.describe()), method="drawn"))


def test_a_server(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served, "connected", lambda args: nullcontext(client))

    def said(*words: str) -> str:
        assert main(["variant", *words]) == 0
        return capsys.readouterr().out

    assert said("list") == "no variants are loaded for you\n"
    folder = variant(client, 1, "").save(tmp_path / "formal")
    assert said("load", str(folder)).startswith("formal@1 on ")
    assert "formal@1" in said("list")
    shown = said("show", "formal")
    assert "w_q.0" in shown
    assert "drawn" in shown
    assert "rank 2" in said("show", str(folder))
    said("fetch", "formal", str(tmp_path / "back"))
    assert Variant.load(tmp_path / "back").hash == Variant.load(folder).hash
    said("unload", "formal")
    assert main(["variant", "show", "formal"]) == 2
    assert "no variant 'formal' is loaded" in capsys.readouterr().err


def test_folders(client: Client, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: Any) -> str:
        assert main(["variant", *map(str, words)]) == 0
        return capsys.readouterr().out

    one, other = (variant(client, seed, name).save(tmp_path / name) for seed, name in ((1, "one"), (2, "other")))
    assert "the same content" in said("diff", one, one)
    assert "w_q.0" in said("diff", one, other)
    said("compose", one, other, "--scale", "1", "0.5", "--out", tmp_path / "both", "--name", "both")
    both = Variant.load(tmp_path / "both")
    expected = Variant.load(one).dense("w_q.0") + 0.5 * Variant.load(other).dense("w_q.0")
    np.testing.assert_allclose(both.dense("w_q.0"), expected, atol=1e-4)
    said("convert", one, "--to", "peft", "--out", tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    said("convert", tmp_path / "peft", "--to", "mlx-lm", "--out", tmp_path / "mlx")
    assert (tmp_path / "mlx" / "adapters.safetensors").is_file()
    assert "merged into" in said("merge", checkpoint, one, tmp_path / "merged")
    told = said(
        "convert", "--from-models", checkpoint, tmp_path / "merged", "--energy", "0.9999", "--out", tmp_path / "found"
    )
    assert "1 weights; at most" in told
    found = Variant.load(tmp_path / "found").dense("module:model.layers.0.self_attn.q_proj")
    np.testing.assert_allclose(found, Variant.load(one).dense("w_q.0"), atol=1e-2)
    assert main(["variant", "convert", "--out", str(tmp_path / "x")]) == 2
    assert "exactly one of a source folder and --from-models" in capsys.readouterr().err
