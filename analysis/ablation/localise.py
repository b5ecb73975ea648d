"""Where a model holds a concept: labelled examples, a linear reader a layer, and the neurons or subspace it reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, NamedArray, capture
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ...protos.spec import Hook
from ..attribution.grid import Layers, from_start
from .probes import (
    Labels,
    Probe,
    Rows,
    auroc,
    cross_validated,
    difference_of_means,
    effect_sizes,
    fit_probe,
    principal_components,
    shuffled_accuracy,
)
from .reference import tokenized

__all__ = ["METHODS", "LayerFeature", "Localisation", "Method", "Pool", "localise", "read_rows"]

Method = Literal["difference of means", "probe", "pca"]
METHODS: tuple[Method, ...] = ("difference of means", "probe", "pca")
SHUFFLED = "probe, shuffled labels"
Pool = Literal["last", "mean"]
"""One row an example: its last token's, or the mean over its tokens."""

INPUTS_A_REQUEST = 32


@dataclass(frozen=True, slots=True, eq=False)
class LayerFeature:
    """What one layer's training rows say of the concept."""

    layer: int
    difference: Probe
    probe: Probe
    components: NDArray[np.float64]
    """[component, width]: principal components, the one that separates the labels best first."""
    effect: NDArray[np.float64]
    """[width]: difference of means over the pooled deviation."""
    mean: NDArray[np.float64]
    """[width]: of all training rows."""
    strength: NDArray[np.float64]
    """[width]: mean |value| of the training rows."""
    selection: float
    """Cross-validated accuracy of the probe within the training examples: what `best_layer` goes by."""
    accuracy: Mapping[str, float]
    """Method, and the shuffled control → accuracy on held-out examples."""


@dataclass(frozen=True, slots=True, eq=False)
class Localisation:
    """A concept, layer by layer. Everything is fitted on the training examples and scored on the held-out ones."""

    site: str
    """Its kind: "resid_post", "mlp_act"."""
    pool: Pool
    features: Mapping[int, LayerFeature]
    """By layer."""
    inputs: Mapping[str, Input]
    """Every example, by name."""
    labels: Labels
    """[example]."""
    train: NDArray[np.intp]
    """Indices of examples."""
    test: NDArray[np.intp]
    model: str
    rows: Mapping[int, Rows]
    """Layer → [example, width]."""

    @property
    def accuracy(self) -> NamedArray:
        """Held-out accuracy, axes "method" (with the shuffled-label control, last) and "layer"."""
        kinds: list[str] = [*METHODS, SHUFFLED]
        values = np.array([[feature.accuracy[kind] for feature in self.features.values()] for kind in kinds])
        return NamedArray(values, {"method": kinds, "layer": [*self.features]})

    @property
    def best_layer(self) -> int:
        """The earliest layer with the best cross-validated accuracy; held-out examples have no say."""
        return max(self.features.values(), key=lambda feature: (feature.selection, -feature.layer)).layer

    def feature(self, layer: int) -> LayerFeature:
        """One layer's. Raises InvalidArgument where it was not read."""
        if layer not in self.features:
            raise InvalidArgument(f"layer {layer} of {self.site} was not read; layers: {[*self.features]}")
        return self.features[layer]

    def subspace(self, layer: int, method: Method = "difference of means", k: int = 1) -> NDArray[np.float64]:
        """[direction, width]: the concept's directions by one method; `k` > 1 only for pca."""
        feature = self.feature(layer)
        if method not in METHODS:
            raise InvalidArgument(f"method {method!r}; allowed: {', '.join(METHODS)}")
        most = len(feature.components) if method == "pca" else 1
        if not 1 <= k <= most:
            raise InvalidArgument(f"{method} gives 1 to {most} directions here, not {k}")
        if method == "pca":
            return feature.components[:k]
        return (feature.difference if method == "difference of means" else feature.probe).direction[None, :]

    def neurons(self, layer: int, k: int = 10) -> tuple[int, ...]:
        """The `k` units with the largest |effect size|, largest first. They are neurons where the site is mlp_act."""
        effect = self.feature(layer).effect
        if not 1 <= k <= len(effect):
            raise InvalidArgument(f"k must be in 1 … {len(effect)}, got {k}")
        return tuple(int(i) for i in np.argsort(-np.abs(effect), kind="stable")[:k])

    def held_out(self) -> tuple[dict[str, Input], Labels]:
        """The examples that nothing was fitted on."""
        return self.examples(self.test), self.labels[self.test]

    def examples(self, indices: NDArray[np.intp]) -> dict[str, Input]:
        """Some of the examples, by name."""
        names = list(self.inputs)
        return {names[i]: self.inputs[names[i]] for i in indices.tolist()}

    def __repr__(self) -> str:
        best = self.feature(self.best_layer)
        scores = ", ".join(f"{name} {value:.2f}" for name, value in best.accuracy.items())
        return (
            f"Localisation({self.site}, {len(self.features)} layers, {len(self.train)} examples and {len(self.test)} "
            f"held out; best layer {best.layer}: {scores})"
        )


def localise(
    client: Client,
    prompts: Prompts,
    labels: Sequence[int],
    *,
    site: str = "resid_post",
    layers: Layers = None,
    pool: Pool = "last",
    held_out: float = 0.3,
    groups: Sequence[Hashable] | None = None,
    components: int = 8,
    c: float = 1.0,
    shuffles: int = 5,
    seed: int = 0,
    model: str = "",
) -> Localisation:
    """Read a binary concept at a kind of site, layer by layer, in three ways and with a shuffled-label control.

    `labels`: 0 or 1 a prompt. `held_out`: share of examples that nothing is fitted on. `groups`: one a prompt; examples
    of a group (a sentence and its variants) stay on one side of the split. `components`: principal components kept.
    `c`: inverse strength of the probe's L2 penalty. Needs scikit-learn (the extra `analysis`).
    Raises InvalidArgument for labels that do not pair with prompts, or too few of one on either side.
    """
    inputs = tokenized(client, prompts, model=model)
    marks = _labels(labels, len(inputs))
    if pool not in ("last", "mean"):
        raise InvalidArgument(f'pool is "last" or "mean", got {pool!r}')
    chosen = _layers(client, site, layers, model)
    train, test = _split(marks, held_out, groups, seed)
    rows = read_rows(client, inputs, [f"{site}.{layer}" for layer in chosen], pool, model=model)
    by_layer = {layer: rows[f"{site}.{layer}"] for layer in chosen}
    features = {
        layer: _feature(layer, found, marks, train, test, components, c, shuffles, seed)
        for layer, found in by_layer.items()
    }
    return Localisation(site, pool, features, inputs, marks, train, test, model, by_layer)


def read_rows(
    client: Client,
    inputs: Mapping[str, Input],
    sites: Sequence[str],
    pool: Pool,
    *,
    hooks: Sequence[Hook] = (),
    model: str = "",
) -> dict[str, Rows]:
    """Site → [example, width] in float64, heads flattened; `hooks` are at work in the forward."""
    reads = [capture(site, positions=-1) if pool == "last" else capture(site, reduce="mean") for site in sites]
    found: dict[str, list[NDArray[np.float64]]] = {str(Site.parse(site)): [] for site in sites}
    items = list(inputs.values())
    for start in range(0, len(items), INPUTS_A_REQUEST):
        some = items[start : start + INPUTS_A_REQUEST]
        run = client.run(some, hooks=hooks, capture=reads, model=model)
        for site, rows in found.items():
            rows += [run.inputs[item.name][site].astype(np.float64).reshape(-1) for item in some]
    return {site: np.stack(rows) for site, rows in found.items()}


def _feature(
    layer: int,
    rows: Rows,
    labels: Labels,
    train: NDArray[np.intp],
    test: NDArray[np.intp],
    n_components: int,
    c: float,
    shuffles: int,
    seed: int,
) -> LayerFeature:
    own, marks = rows[train], labels[train]
    components = principal_components(own, n_components)
    apart = np.array([abs(auroc(own @ component, marks) - 0.5) for component in components])
    components = components[np.argsort(-apart, kind="stable")]
    readers = {
        "difference of means": (difference_of_means(own, marks), rows[test]),
        "probe": (fit_probe(own, marks, c=c), rows[test]),
        "pca": (fit_probe(own @ components.T, marks, c=c), rows[test] @ components.T),
    }
    accuracy = {name: probe.accuracy(seen, labels[test]) for name, (probe, seen) in readers.items()}
    accuracy[SHUFFLED] = shuffled_accuracy(rows, labels, train, test, n=shuffles, c=c, seed=seed)
    return LayerFeature(
        layer,
        readers["difference of means"][0],
        readers["probe"][0],
        components,
        effect_sizes(own, marks),
        own.mean(axis=0),
        np.abs(own).mean(axis=0),
        cross_validated(own, marks, c=c, seed=seed),
        accuracy,
    )


def _labels(labels: Sequence[int], n: int) -> Labels:
    marks = np.asarray(labels)
    if marks.shape != (n,) or not np.isin(marks, (0, 1)).all():
        raise InvalidArgument(
            f"labels must be 0 or 1, one for each of the {n} prompts; got {len(marks)} of the values "
            f"{sorted(set(marks.tolist()))[:6]}"
        )
    return marks.astype(np.int64)


def _layers(client: Client, site: str, layers: Layers, model: str) -> list[int]:
    info = client.describe(model)
    known = info.site(site)
    if known is None or known.layers is None or site in ("attn_scores", "attn_probs"):
        raise InvalidArgument(
            f"site {site!r}: give a kind of site that layers have, whose rows are of one width, without a layer: "
            "resid_post, mlp_act, z, attn_out, …"
        )
    chosen = list(known.layers) if layers is None else from_start(layers, info.n_layers)
    wrong = [layer for layer in chosen if layer not in known.layers]
    if wrong or not chosen:
        raise InvalidArgument(
            f"layers {wrong} of {site}; allowed: {known.layers[0]} … {known.layers[-1]}, at least one"
        )
    return chosen


def _split(
    labels: Labels, held_out: float, groups: Sequence[Hashable] | None, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of training and held-out examples; each label keeps its share as far as groups allow."""
    if not 0 < held_out < 1:
        raise InvalidArgument(f"held_out is a share between 0 and 1, got {held_out}")
    if groups is not None and len(groups) != len(labels):
        raise InvalidArgument(f"{len(groups)} groups for {len(labels)} prompts; give one a prompt")
    rng = np.random.default_rng(seed)
    if groups is None:
        sides = [rng.permutation(np.flatnonzero(labels == label)) for label in (0, 1)]
        test = np.concatenate([side[: round(held_out * len(side))] for side in sides])
    else:
        names: list[Hashable] = list(dict.fromkeys(groups))
        chosen: set[Hashable] = {names[i] for i in rng.permutation(len(names))[: max(1, round(held_out * len(names)))]}
        test = np.array([i for i, group in enumerate(groups) if group in chosen], dtype=np.intp)
    test = np.sort(test)
    train = np.setdiff1d(np.arange(len(labels)), test)
    fewest = {
        side: np.bincount(labels[index], minlength=2).min() for side, index in (("train on", train), ("hold out", test))
    }
    for side, least in {"train on": 2, "hold out": 1}.items():
        if fewest[side] < least:
            raise InvalidArgument(
                f"too few examples of one label to {side} ({fewest[side]}, at least {least}); give more examples, or "
                "another held_out, groups or seed"
            )
    return train, test
