"""Activations of a known dictionary, and trainings that cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probewire.analysis.sae.model.configs import import_sae_lens
from probewire.analysis.sae.seeds.cells import Condition, Trained

D_IN, N_FEATURES = 16, 24


def planted(
    n_rows: int, *, d_in: int = D_IN, n_features: int = N_FEATURES, firing: float = 0.08, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Activations [row, d_in] that sae_lens.synthetic makes of a dictionary, and the dictionary [feature, d_in]."""
    import torch

    import_sae_lens()  # its own warnings are no failures of ours
    synthetic: Any = import_module("sae_lens.synthetic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dictionary = synthetic.FeatureDictionary(n_features, d_in)
        features = synthetic.ActivationGenerator(n_features, firing, std_firing_magnitudes=0.3)
        with torch.no_grad():
            return dictionary(features.sample(n_rows)).numpy(), dictionary.feature_vectors.numpy().copy()


def noisy(noise: Callable[[int], float], variance: Callable[[int], float]) -> Callable[[Condition, int], Trained]:
    """Trainings that give one dictionary with as much noise as k says, and the explained variance of that k."""
    truth = np.random.default_rng(0).standard_normal((N_FEATURES, D_IN))

    def train_one(condition: Condition, seed: int) -> Trained:
        rng = np.random.default_rng([seed, condition.k, condition.epochs])
        drawn = truth[: condition.d_sae] + noise(condition.k) * rng.standard_normal((condition.d_sae, D_IN))
        return Trained(drawn.astype(np.float32), variance(condition.k), float(condition.k), 1.0)

    return train_one
