"""Several SAEs on one stream: each as if it had been alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.training.several import train_several
from probewire.analysis.sae.training.training import train
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_rows import Failing, batches
from tests.analysis.sae.training.test_training import config, weights

CONFIGS = {
    "topk": config("topk"),
    "topk-seed3": config("topk", seed=3, lr=1e-3),
    "batchtopk": config("batchtopk", normalisation="expected_average_only_in", d_sae=64),
    "matryoshka": config("matryoshka", normalisation="covariance_whitening", normalisation_batches=6),
    "jumprelu": config("jumprelu", steps=31, sparsity_warm_up_steps=8),
    "gated": config("gated", steps=20),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("alone")
    return {name: train(batches(), one, root / name, progress=False) for name, one in CONFIGS.items()}


def test_each_is_to_the_bit_what_it_is_alone(alone: dict[str, Any], tmp_path: Path) -> None:
    together = train_several(batches(), CONFIGS, tmp_path / "runs", progress=False)
    assert {name: weights(one.folder) for name, one in together.items()} == {
        name: weights(one.folder) for name, one in alone.items()
    }
    assert {name: one.curves.to_dict() for name, one in together.items()} == {
        name: one.curves.to_dict() for name, one in alone.items()
    }
    assert (tmp_path / "runs" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_each_is_also_after_interruptions(alone: dict[str, Any], tmp_path: Path) -> None:
    for reads in (4, 25, 13):
        with pytest.raises(ConnectionError):
            train_several(Failing(batches(), reads), CONFIGS, tmp_path / "runs", progress=False)
    assert (tmp_path / "runs" / "gated" / "cfg.json").exists(), "one that has fewer steps is ready before the others"
    together = train_several(batches(), CONFIGS, tmp_path / "runs", progress=False)
    assert {name: weights(one.folder) for name, one in together.items()} == {
        name: weights(one.folder) for name, one in alone.items()
    }
    assert len(together["gated"].run.sessions) < len(together["topk"].run.sessions)


@pytest.mark.slow
def test_the_order_has_no_say(alone: dict[str, Any], tmp_path: Path) -> None:
    turned = {name: CONFIGS[name] for name in ("batchtopk", "topk")}
    together = train_several(batches(), turned, tmp_path / "runs", progress=False)
    assert all(weights(one.folder) == weights(alone[name].folder) for name, one in together.items())


def test_a_stream_is_resumed_with_the_same_saes(tmp_path: Path) -> None:
    pair = {name: CONFIGS[name] for name in ("topk", "batchtopk")}
    with pytest.raises(ConnectionError):
        train_several(Failing(batches(), 20), pair, tmp_path, progress=False)
    with pytest.raises(FailedPrecondition, match="is of topk, batchtopk, and gated is on one side only"):
        train_several(batches(), {**pair, "gated": CONFIGS["gated"]}, tmp_path, progress=False)
    with pytest.raises(FailedPrecondition, match="and batchtopk is on one side only"):
        train_several(batches(), {"topk": pair["topk"]}, tmp_path, progress=False)


@pytest.mark.slow
def test_more_may_be_trained_once_all_are_finished(alone: dict[str, Any], tmp_path: Path) -> None:
    train_several(batches(), {"topk": CONFIGS["topk"]}, tmp_path, progress=False)
    both = train_several(batches(), {"topk": CONFIGS["topk"], "gated": CONFIGS["gated"]}, tmp_path, progress=False)
    assert len(both["topk"].run.sessions) == 1
    assert weights(both["gated"].folder) == weights(alone["gated"].folder)


@pytest.mark.parametrize("name", ["", "a/b", "..", "checkpoints", "-x"])
def test_names_that_are_no_folders_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="names become folders"):
        train_several(batches(), {name: config()}, tmp_path, progress=False)


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="there is no config"):
        train_several(batches(), {}, tmp_path, progress=False)
