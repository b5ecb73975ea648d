"""Controls of the data: SAEs agree beyond them where there is a dictionary to find, and not where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.seeds.cells import Condition
from probewire.analysis.sae.seeds.matched import matched_controls
from probewire.analysis.sae.training.array_trainer import ArrayTrainer
from tests.analysis.sae.planted_data import N_FEATURES, planted

TEMPLATE = TrainConfig(architecture="topk", d_sae=1, k=1, steps=1, batch_size=256, lr=3e-3)
CONDITION = Condition(3, N_FEATURES, 15)


def test_a_planted_dictionary_beats_every_control(tmp_path: Path) -> None:
    rows, _ = planted(4000)
    found = matched_controls(
        rows, lambda given: ArrayTrainer(given, TEMPLATE), CONDITION, range(4), folder=tmp_path, method="jackknife"
    )
    names = ["untrained", "shuffled activations", "Gaussian", "random dictionaries"]
    assert list(found.differences) == names
    assert list(found.controls) == names[:3]
    assert all(gap.low > 0 for gap in found.differences.values()), found.table()
    assert found.controls["untrained"].condition.epochs == 0
    assert found.trained.explained_variance > found.controls["Gaussian"].explained_variance + 0.1
    gap = found.differences["Gaussian"]
    control = found.controls["Gaussian"].stability.mean
    assert gap.mean == found.trained.stability.mean - control
    table = found.table().splitlines()
    assert len(table) == 2 + 1 + 4
    assert table[-1].startswith(f"| random dictionaries | {found.trained.random.mean:.4f} [")


@pytest.mark.slow
def test_gaussian_data_does_not_beat_its_gaussian(tmp_path: Path) -> None:
    """Correlated data without sparse structure: random dictionaries are beaten all the same, which is the trap."""
    rng = np.random.default_rng(0)
    rows: Any = rng.standard_normal((4000, 16)) * np.geomspace(3, 0.1, 16)
    found = matched_controls(
        rows, lambda given: ArrayTrainer(given, TEMPLATE), CONDITION, range(4), folder=tmp_path, method="jackknife"
    )
    assert found.differences["random dictionaries"].low > 0, found.table()
    gap = found.differences["Gaussian"]
    assert gap.low < 0 < gap.high, found.table()
