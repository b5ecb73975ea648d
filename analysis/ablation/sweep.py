"""What each head, neuron or site is worth: the metric with it taken out, minus the metric as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, NamedArray
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric, Target
from ...protos.model import MAX_INPUTS
from ...protos.spec import Hook
from ...protos.sweeps import MAX_PLANS
from ..attribution.grid import Layers
from ..tasks import FittedTask, Form
from .methods import Ablation, Positions
from .parts import Part, parts_of

__all__ = ["ablation_sweep", "measure_plans"]

INPUTS_A_REQUEST = MAX_INPUTS // 2
"""Resampling adds a source for each."""


def ablation_sweep(
    client: Client,
    task: FittedTask,
    over: str,
    ablations: Ablation | Sequence[Ablation],
    *,
    layers: Layers = None,
    indices: Sequence[int] | None = None,
    positions: Positions = None,
    form: Form = "clean",
    metric: Metric | None = None,
    progress: bool = True,
) -> NamedArray:
    """Change of the metric (ablated minus unablated) for every part, taken out one at a time.

    Axes: "ablation" (each one's `kind`), "input" (names of the task's examples), "layer", and "head" or "neuron" unless
    `over` is a kind of site (see `parts_of`); `.mean("input")` for the average. `positions`: where it is taken out
    (default: at every token). `metric`: one for all inputs (default: each example's own logit difference).
    Raises InvalidArgument for parts that the model has not, or two ablations of one kind.
    """
    listed = [*ablations] if isinstance(ablations, Sequence) else [ablations]
    kinds = [ablation.kind for ablation in listed]
    if not listed or len(set(kinds)) != len(kinds):
        raise InvalidArgument(f"ablations must be of distinct kinds, at least one; got {kinds}")
    grid = parts_of(client.describe(task.model), over, layers=layers, indices=indices)
    found = np.stack([_changes(client, task, grid.parts, a, positions, form, metric, progress) for a in listed])
    shape = (len(kinds), len(task), *(len(labels) for labels in grid.axes.values()))
    return NamedArray(found.reshape(shape), {"ablation": kinds, "input": [*task.names], **grid.axes})


def _changes(
    client: Client,
    task: FittedTask,
    parts: Sequence[Part],
    ablation: Ablation,
    positions: Positions,
    form: Form,
    metric: Metric | None,
    progress: bool,
) -> NDArray[np.float64]:
    """[input, part]."""
    found: list[NDArray[np.float64]] = []
    for batch in task.batches(INPUTS_A_REQUEST):
        inputs = batch.prompts(form)
        plans = [ablation.hooks(part, inputs, positions) for part in parts]
        sources = ablation.sources(inputs)
        values = measure_plans(
            client, batch, [[], *plans], form=form, metric=metric, sources=sources, progress=progress
        )
        found.append(values[:, 1:] - values[:, :1])
    return np.concatenate(found)


def measure_plans(
    client: Client,
    task: FittedTask,
    plans: Sequence[Sequence[Hook]],
    *,
    form: Form = "clean",
    metric: Metric | None = None,
    sources: Sequence[Input] = (),
    progress: bool = False,
) -> NDArray[np.float64]:
    """[input, plan]: the metric of each example (default: its own logit difference) under each plan.

    Any number of examples and plans, in as many requests as they take; `sources` go along with each of these, and with
    their examples must fit into one (64 inputs) where plans name inputs.
    """
    found = [
        _measure(client, batch, plans, form, metric, sources, progress)
        for batch in task.batches(max(1, MAX_INPUTS - len(sources)))
    ]
    return np.concatenate(found)


def _measure(
    client: Client,
    task: FittedTask,
    plans: Sequence[Sequence[Hook]],
    form: Form,
    metric: Metric | None,
    sources: Sequence[Input],
    progress: bool,
) -> NDArray[np.float64]:
    inputs = [*task.prompts(form).values(), *sources]
    targets = task.targets if metric is None else [Target(metric, task.names)]
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(plans), MAX_PLANS):
        some = [list(plan) for plan in plans[start : start + MAX_PLANS]]
        sweep = client.sweep(inputs, targets, some, progress=progress, model=task.model)
        found.append(np.stack([np.asarray(sweep.array(name)).reshape(-1) for name in task.names]))
    return np.concatenate(found, axis=1)
