"""Rows of two corpora that share some planted directions and have some of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.dual.dual_batches import DualBatches
from probewire.analysis.sae.model.configs import TrainConfig

D_IN, N = 16, 600


@dataclass(frozen=True, slots=True)
class Two:
    forget: NDArray[np.float32]
    retain: NDArray[np.float32]
    config: TrainConfig

    def batches(self) -> DualBatches:
        return DualBatches(ArrayBatches(self.forget, 32, 0), ArrayBatches(self.retain, 32, 1))

    @property
    def labels(self) -> torch.Tensor:
        return self.batches().labels


@pytest.fixture(scope="session")
def two() -> Two:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(D_IN, 12)))[0].T

    def rows(own: range) -> NDArray[np.float32]:
        acts = np.zeros((N, 12))
        for features, rate in ((range(4), 0.3), (own, 0.3)):
            for feature in features:
                acts[:, feature] = (rng.random(N) < rate) * (1 + rng.random(N))
        return (acts @ directions + 0.02 * rng.normal(size=(N, D_IN))).astype(np.float32)

    config = TrainConfig(architecture="batchtopk", d_sae=24, k=3, steps=40, batch_size=64, lr=5e-3, checkpoints=3)
    return Two(rows(range(4, 8)), rows(range(8, 12)), config)
