"""Sweeps over SAE folders: what is found is what lies there, and it is not trained again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.seeds.cells import Condition
from probewire.analysis.sae.seeds.stability import decoders, stability
from probewire.analysis.sae.seeds.sweeps import run_sweep
from probewire.analysis.sae.training.folder_trainer import FolderTrainer
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.planted_data import planted

TEMPLATE = TrainConfig(
    architecture="topk", d_sae=1, k=1, steps=1, batch_size=256, lr=3e-3, normalisation="expected_average_only_in"
)


def trainer(rows: np.ndarray, folder: Path) -> FolderTrainer:
    return FolderTrainer(
        lambda seed: ArrayBatches(rows[:-500], 256, seed),
        TEMPLATE,
        epoch_rows=len(rows) - 500,
        held_out=rows[-500:],
        folder=folder,
    )


def test_a_sweep_of_folders(tmp_path: Path) -> None:
    rows = 50 * planted(3000)[0]
    condition, seeds = Condition(3, 24, 8), range(4)
    train_one = trainer(rows, tmp_path / "saes")
    sweep = run_sweep(train_one, [condition], seeds, folder=tmp_path / "sweep", identity=train_one.identity)
    folders = {f"seed {seed}": tmp_path / "saes" / f"k3-d24-e8-s{seed}" for seed in seeds}
    row = sweep.rows[0]
    np.testing.assert_array_equal(row.stability.pairs, stability(decoders(folders)).pairs)
    saved = load(folders["seed 2"])
    residual = rows[-500:] - saved.reconstruct(rows[-500:])
    known = 1 - (residual**2).sum() / ((rows[-500:] - rows[-500:].mean(axis=0)) ** 2).sum()
    assert row.explained_variances[2] == pytest.approx(known, abs=1e-5)
    assert known > 0.5
    stamp = (folders["seed 2"] / "sae_weights.safetensors").stat().st_mtime_ns
    again = run_sweep(train_one, [condition], seeds, folder=tmp_path / "sweep", identity=train_one.identity)
    assert again.to_json() == sweep.to_json()
    assert (folders["seed 2"] / "sae_weights.safetensors").stat().st_mtime_ns == stamp


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    with pytest.raises(InvalidArgument, match="take ArrayTrainer for it"):
        trainer(rows, tmp_path)(Condition(2, 8, 0), 0)
    for held_out, epoch_rows in ((rows[:1], 900), (rows[0], 900), (rows[:100], 100)):
        with pytest.raises(InvalidArgument, match="an epoch a batch or more"):
            FolderTrainer(
                lambda seed: ArrayBatches(rows, 256, seed),
                TEMPLATE,
                epoch_rows=epoch_rows,
                held_out=held_out,
                folder=tmp_path,
            )
    with pytest.raises(InvalidArgument, match="has no k to vary"):
        FolderTrainer(
            lambda seed: ArrayBatches(rows, 256, seed),
            replace(TEMPLATE, architecture="jumprelu", k=None, l0_coefficient=1.0),
            epoch_rows=900,
            held_out=rows[:100],
            folder=tmp_path,
        )
    assert not list(tmp_path.iterdir())
