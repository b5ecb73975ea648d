"""The same ablations on both backends give the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from probewire.analysis.ablation import (
    MEASURES,
    MeanAblation,
    NoiseAblation,
    ResampleAblation,
    ZeroAblation,
    ablate_feature,
    ablation_sweep,
    causal_battery,
    localise,
    measure,
)
from probewire.analysis.tasks import FittedTask
from probewire.clients import Client
from tests.analysis.ablation.planted import CUE, LAYER, NEURON, OTHER, client_of, texts


def numbers(client: Client, task: FittedTask) -> dict[str, np.ndarray]:
    one = task.batches(1)[0]
    kinds = [ZeroAblation(), MeanAblation(measure(client, task.corrupt, "z.*", positionwise=True)), NoiseAblation(0.5)]
    battery = causal_battery(client, task, LAYER, NEURON, positions=-1)
    stems = texts(20, "", seed=3)
    prompts, labels = [s + end for s in stems for end in (CUE, OTHER)], [1, 0] * 20
    found = localise(client, prompts, labels, site="resid_pre", layers=[1, 2], groups=[s for s in stems for _ in "12"])
    test = ablate_feature(client, found, 1, n_controls=5, metric=task.examples[0].metric)
    return {
        "heads": ablation_sweep(client, task, "heads", kinds, progress=False).values,
        "resample": ablation_sweep(client, one, "heads", ResampleAblation(task.corrupt), progress=False).values,
        "battery": np.array([getattr(battery, name) for name in MEASURES]),
        # Not the controls' specificity: of one that moves hardly any logit it is a share of rounding.
        "controls": np.array([battery.controls[name] for name in MEASURES[:2]]),
        "accuracy": found.accuracy.values,
        "feature": test.values.values,
    }


def test_torch_and_mlx(planted: Path, client: Client, task: FittedTask) -> None:
    with client_of(planted, "mlx") as other:
        expected, found = numbers(client, task), numbers(other, task)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=2e-4, err_msg=name)
        assert np.abs(values).max() > 1e-2
