"""The test of a located concept: take it out of held-out examples, and see whether what comes after still knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, NamedArray, Tensor, ablate, steer
from ...clients.requests.hooks import Options
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric, Target
from ...protos.sites import HEAD_SITES, Site
from ...protos.spec import Hook
from .controls import matched_controls, z_score
from .localise import Localisation, Method, read_rows
from .methods import Positions
from .probes import NO_VARIANCE, Rows, auroc, fit_probe

__all__ = ["FeatureTest", "ablate_feature"]

MIN_CONTROLS = 5
INPUTS_A_REQUEST = 64


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTest:
    """What is left of a concept on held-out examples, ablation by ablation."""

    what: str
    """What was taken out, and where."""
    readout: str
    """The site where a probe, fitted on training examples without ablation, looks for the concept afterwards."""
    values: NamedArray
    """Axes "measure" and "ablation" (none, the concept's own, and the mean of the random controls, last)."""
    controls: Mapping[str, NDArray[np.float64]]
    """Measure → [control]."""
    z: NamedArray
    """Axes "measure" and "ablation" (the concept's own): deviations from the mean of the controls; negative: less is left."""

    def __repr__(self) -> str:
        measures, ablations = self.values.axes.values()
        rows = [
            f"  {measure}: " + ", ".join(f"{kind} {value:.3g}" for kind, value in zip(ablations, row, strict=True))
            for measure, row in zip(measures, np.asarray(self.values), strict=True)
        ]
        return "\n".join([f"FeatureTest({self.what}; readout at {self.readout})", *rows])


def ablate_feature(
    client: Client,
    found: Localisation,
    layers: int | Sequence[int] | None = None,
    *,
    method: Method = "difference of means",
    k: int = 1,
    neurons: int | None = None,
    readout: str | None = None,
    metric: Metric | None = None,
    n_controls: int = 10,
    positions: Positions = None,
    seed: int = 0,
) -> FeatureTest:
    """Take the concept out of the held-out examples at `layers` (default: the best one), and measure what is left.

    Of a subspace (`method`, `k` directions): "project out" removes it, "mean" sets it to the training mean; the controls
    project out as many random directions of the rows' own covariance, orthogonal to it. With `neurons`, the so many
    with the largest effect: "zero", "mean"; the controls zero as many random units as active. Each layer of several uses
    its own. Measures: "readout accuracy" and "readout AUROC" of a probe at `readout` (default: the last layer's
    resid_post), and with a `metric` "separation", its mean over label 1 minus that over label 0.
    Raises InvalidArgument for layers that were not read, or fewer than 5 controls.
    """
    if n_controls < MIN_CONTROLS:
        raise InvalidArgument(f"n_controls must be {MIN_CONTROLS} or more, got {n_controls}")
    if found.site in HEAD_SITES:
        raise InvalidArgument(
            f"{found.site} has heads, whose rows were read flattened; localise at attn_out or resid_mid"
        )
    chosen = [found.best_layer] if layers is None else [layers] if isinstance(layers, int) else list(layers)
    at: Options = {} if positions is None else {"positions": positions}
    rng = np.random.default_rng(seed)
    if neurons is None:
        own, controls = _subspace_plans(found, chosen, method, k, n_controls, at, rng)
        what = f"{k} direction{'s' if k > 1 else ''} by {method}"
    else:
        own, controls = _neuron_plans(found, chosen, neurons, n_controls, at, rng)
        what = f"{neurons} units by effect size"
    where = f"resid_post.{client.describe(found.model).n_layers - 1}" if readout is None else str(Site.parse(readout))
    plans = [[], *own.values(), *controls]
    measures = {**_readouts(client, found, where, plans), **_separation(client, found, metric, plans)}
    what += f" of {found.site}.{','.join(map(str, chosen))}, {'all tokens' if positions is None else f'positions {positions}'}"
    return _result(what, where, list(own), "random units" if neurons is not None else "random directions", measures)


def _result(
    what: str, where: str, own: list[str], control: str, measures: Mapping[str, NDArray[np.float64]]
) -> FeatureTest:
    """`measures`: name → [plan]: none, the concept's own, controls."""
    n = 1 + len(own)
    values = np.array([[*row[:n], row[n:].mean()] for row in measures.values()])
    z = np.array([[z_score(float(value), row[n:]) for value in row[1:n]] for row in measures.values()])
    return FeatureTest(
        what,
        where,
        NamedArray(values, {"measure": [*measures], "ablation": ["none", *own, control]}),
        {name: row[n:] for name, row in measures.items()},
        NamedArray(z, {"measure": [*measures], "ablation": own}),
    )


Plans = dict[str, list[Hook]]


def _subspace_plans(
    found: Localisation, layers: Sequence[int], method: Method, k: int, n: int, at: Options, rng: np.random.Generator
) -> tuple[Plans, list[list[Hook]]]:
    plans: Plans = {"project out": [], "mean": []}
    controls: list[list[Hook]] = [[] for _ in range(n)]
    for layer in layers:
        site, basis = f"{found.site}.{layer}", _orthonormal(found.subspace(layer, method, k))
        remove = ablate(site, directions=_tensor(basis), **at)
        back = basis.T @ (basis @ found.feature(layer).mean)
        plans["project out"].append(remove)
        plans["mean"] += [remove, steer(site, _tensor(back), **at)]
        rows = found.rows[layer][found.train]
        for control in controls:
            control.append(ablate(site, directions=_tensor(_random_directions(rows, basis, rng)), **at))
    return plans, controls


def _neuron_plans(
    found: Localisation, layers: Sequence[int], n_neurons: int, n: int, at: Options, rng: np.random.Generator
) -> tuple[Plans, list[list[Hook]]]:
    plans: Plans = {"zero": [], "mean": []}
    controls: list[list[Hook]] = [[] for _ in range(n)]
    for layer in layers:
        site, units, feature = f"{found.site}.{layer}", found.neurons(layer, n_neurons), found.feature(layer)
        plans["zero"].append(ablate(site, units=units, **at))
        plans["mean"].append(ablate(site, units=units, mean=_tensor(feature.mean[list(units)]), **at))
        sets = matched_controls(feature.strength, units, n, rng)
        for control, matched in zip(controls, sets, strict=True):
            control.append(ablate(site, units=matched, **at))
    return plans, controls


def _random_directions(rows: Rows, basis: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """As many as `basis` has, from the rows' covariance, and orthogonal to it; isotropic where the rows vary no further."""
    drawn = rng.normal(size=(len(basis), len(rows))) @ (rows - rows.mean(axis=0))
    apart = drawn - (drawn @ basis.T) @ basis
    if (np.linalg.norm(apart, axis=1) < NO_VARIANCE * np.linalg.norm(drawn, axis=1)).any():
        drawn = rng.normal(size=basis.shape)
        apart = drawn - (drawn @ basis.T) @ basis
    return apart


def _orthonormal(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.qr(directions.T)[0].T


def _readouts(
    client: Client, found: Localisation, site: str, plans: Sequence[list[Hook]]
) -> dict[str, NDArray[np.float64]]:
    """Accuracy and AUROC, [plan] each, of a probe fitted where nothing is ablated."""
    train = read_rows(client, found.examples(found.train), [site], found.pool, model=found.model)[site]
    probe = fit_probe(train, found.labels[found.train])
    inputs, labels = found.held_out()
    scores = [
        probe.scores(read_rows(client, inputs, [site], found.pool, hooks=plan, model=found.model)[site])
        for plan in plans
    ]
    return {
        "readout accuracy": np.array([((s > 0) == (labels == 1)).mean() for s in scores]),
        "readout AUROC": np.array([auroc(s, labels) for s in scores]),
    }


def _separation(
    client: Client, found: Localisation, metric: Metric | None, plans: Sequence[list[Hook]]
) -> dict[str, NDArray[np.float64]]:
    """[plan]: mean metric of label 1 minus that of label 0."""
    if metric is None:
        return {}
    inputs, labels = found.held_out()
    items = list(inputs.values())
    columns: list[NDArray[np.float64]] = []
    for start in range(0, len(items), INPUTS_A_REQUEST):
        some = items[start : start + INPUTS_A_REQUEST]
        sweep = client.sweep(some, [Target(metric)], list(plans), progress=False, model=found.model)
        columns += [np.asarray(sweep.array(item.name), dtype=np.float64).reshape(-1) for item in some]
    values = np.stack(columns)
    return {"separation": values[labels == 1].mean(axis=0) - values[labels == 0].mean(axis=0)}


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return Tensor.of(np.ascontiguousarray(values, dtype=np.float32))
