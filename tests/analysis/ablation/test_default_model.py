"""On the real model: the number of a subject is found, and its direction, not a random one, carries the verb."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.ablation import MeanAblation, ZeroAblation, ablate_feature, ablation_sweep, localise, measure
from probewire.analysis.tasks import agreement, fit, ioi
from probewire.clients import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_number_of_a_subject(default_client: Client) -> None:
    task = fit(agreement(), default_client, 24)
    prompts = [list(prompt.token_ids or ()) for prompt in (*task.clean.values(), *task.corrupt.values())]
    plural = [int(example.example.labels["number"] == "plural") for example in task.examples]
    labels = [*plural, *(1 - label for label in plural)]
    found = localise(default_client, prompts, labels, layers=[0, 27], groups=[*task.names, *task.names])
    assert found.best_layer == 27, "at layer 0 the last token is the attractor alone"
    assert found.accuracy.sel(method="probe", layer=27).item() > 0.9
    assert found.accuracy.sel(method="difference of means", layer=0).item() < 0.7

    first = task.examples[plural.index(1)].metric
    test = ablate_feature(default_client, found, 27, metric=first, n_controls=5)
    left = test.values.sel(measure="separation")
    assert left.sel(ablation="none").item() > 3
    assert left.sel(ablation="project out").item() < 0.35 * left.sel(ablation="none").item()
    assert left.sel(ablation="random directions").item() > 0.8 * left.sel(ablation="none").item()


def test_the_kind_of_ablation_matters(default_client: Client) -> None:
    """Zeros make early heads look essential that their mean replaces at little cost."""
    task = fit(ioi(), default_client, 4)
    others = fit(ioi(seed=1), default_client, 12)
    kinds = [ZeroAblation(), MeanAblation(measure(default_client, others.clean, ["z.1", "z.23"]))]
    change = ablation_sweep(default_client, task, "heads", kinds, layers=[1, 23], progress=False).mean("input")
    early, late = (change.sel(layer=layer).values for layer in (1, 23))
    assert np.abs(early[0]).max() > 3 * np.abs(early[1]).max()
    assert late[:, 3].max() < -0.5, "head 23.3 costs under either"
