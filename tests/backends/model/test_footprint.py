"""What a model will take, against what it does take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probewire.backends import free_bytes
from probewire.backends.checkpoints import resolve_model
from probewire.backends.model import footprint as module
from probewire.backends.model.footprint import check_room, footprint
from probewire.backends.model.limits import Limits
from probewire.protos.errors import FailedPrecondition
from tests.tiny_models import FAMILIES, tiny_checkpoint


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_what_the_files_hold(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    index = folder / "model.safetensors.index.json"  # gpt_oss has a second set of files, for mlx-lm
    listed = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    on_disk = sum((folder / name).stat().st_size for name in listed)
    need = footprint(folder, "auto", Limits())
    assert 0.8 * on_disk <= need.weights <= on_disk
    assert need.cache > 0
    assert footprint(folder, "bfloat16", Limits()).weights == need.weights // 2  # they are stored as float32


def test_the_cache_is_counted_as_the_engines_size_it(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path)  # 3 layers, 2 key-value heads of 16
    assert footprint(folder, "float32", Limits(cache_tokens=1000)).cache == 2 * 3 * 2 * 16 * 1000 * 4


def test_a_model_that_does_not_fit_is_refused_with_figures_and_the_fix(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    with pytest.raises(FailedPrecondition, match=r"takes about .* GiB .* 0\.00 GiB are free; unload another model"):
        check_room(folder, "tiny", "auto", Limits(), free=1000)
    check_room(folder, "tiny", "auto", Limits(), free=None)
    check_room(folder, "tiny", "auto", Limits(), free=1 << 30)


def test_the_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, own = tmp_path / "fs" / "system.slice", tmp_path / "cgroup"
    (group / "probewire.service").mkdir(parents=True)
    own.write_text("0::/system.slice/probewire.service\n")
    (group / "memory.max").write_text("5000\n")  # the slice has a bound, the unit below it has not
    (group / "memory.current").write_text("4000\n")
    (group / "probewire.service" / "memory.max").write_text("max\n")
    monkeypatch.setattr(module, "CGROUP", tmp_path / "fs")
    monkeypatch.setattr(module, "OWN_CGROUP", own)
    assert free_bytes("torch", "cpu") == 1000
    (group / "memory.max").write_text("max\n")
    assert (free_bytes("mlx", "cpu") or 0) > 1 << 20


def test_the_default_model_is_about_what_it_is_said_to_be() -> None:
    need = footprint(resolve_model("").folder, "bfloat16", Limits())
    assert 250e6 < need.weights < 340e6  # 135 million parameters, the tied embedding stored once or twice
