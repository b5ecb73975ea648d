"""Which neuron carries an association: attribution on its prompts less that on its siblings', then ablation against others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np

from ..activations import reading
from ..base import Base
from ..examples import TrainExample, batch_of, to_tokens
from ..pushes import Push, pushed
from .association import Probe, strengths

__all__ = ["Candidate", "choose_neurons", "strong_values"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A neuron and what was measured of it."""

    layer: int
    unit: int
    polarity: Literal[1, -1]
    strong: float
    """Mean over target prompts of its largest value, in the direction of its polarity."""
    attribution: float
    """Mean Σ over positions of a·∂A/∂a on targets, less that on siblings."""
    recall: float
    """Share of target prompts with a position where polarity·a > ¼ strong."""
    elsewhere: float
    """Share of positions of siblings' prompts where it does."""
    drop: float
    """A on targets, less A with the neuron at 0 wherever it is active."""
    sibling_drop: float
    p_value: float
    """Of the drop, among neurons of its layer at random, + 1."""


def choose_neurons(
    base: Base, target: Sequence[Probe], siblings: Sequence[Probe], *, top: int = 10, controls: int = 39, seed: int = 0
) -> list[Candidate]:
    """The `top` by attribution in the first two thirds of the layers, best drop first; all are given, passed or not.

    A p-value of a neuron alone: with `top` of them, Holm's first bound is .05 / top, which takes 20·top controls to reach.
    """
    torch: Any = import_module("torch")
    layers = range((2 * base.n_layers) // 3)
    scores, values = _attributions(base, target, layers)
    scores -= _attributions(base, siblings, layers)[0]
    elsewhere = _values(base, siblings, layers)
    flat = np.argsort(-np.abs(scores), axis=None)[:top]
    rng, drops = np.random.default_rng([seed, 5]), dict[int, list[float]]()
    found: list[Candidate] = []
    with torch.no_grad():
        plain = [strengths(base, probes).mean().item() for probes in (target, siblings)]
        for index in flat:
            layer, unit = divmod(int(index), int(scores.shape[1]))
            polarity, strong = _strong(values[layer], unit)
            drop, other = (
                before - _ablated(base, probes, layer, unit, polarity, strong)
                for before, probes in zip(plain, (target, siblings), strict=True)
            )
            if layer not in drops:
                drawn = rng.choice(scores.shape[1], size=controls, replace=False)
                drops[layer] = [
                    plain[0] - _ablated(base, target, layer, int(u), *_strong(values[layer], int(u))) for u in drawn
                ]
            active = [polarity * row[1:, unit] > strong / 4 for row in values[layer]]
            away = np.concatenate([polarity * row[1:, unit] > strong / 4 for row in elsewhere[layer]])
            found.append(
                Candidate(
                    layer, unit, polarity, strong, float(scores[layer, unit]),
                    float(np.mean([bool(row.any()) for row in active])), float(away.mean()), drop, other,
                    (1 + sum(abs(x) >= abs(drop) for x in drops[layer])) / (1 + controls),
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: -one.drop)


def _attributions(base: Base, probes: Sequence[Probe], layers: range) -> tuple[Any, list[list[Any]]]:
    """[layer, unit]: mean over probes of Σ a·∂A/∂a; and by layer each probe's values [pos, unit]."""
    total, kept = None, [list[Any]() for _ in layers]
    for probe in probes:
        sites = [f"mlp_act.{layer}" for layer in layers]
        base.model.requires_grad_(requires_grad=False)
        embed = base.model.get_input_embeddings().weight
        embed.requires_grad_(requires_grad=True)  # so that there is a graph at all
        with reading(base, sites) as found:
            pair = strengths(base, [probe])[0]
            acts = [found[site] for site in sites]
            gradients = import_module("torch").autograd.grad(pair, acts)
        embed.requires_grad_(requires_grad=False)
        own = np.stack([(a * g)[:, 1:].sum((0, 1)).detach().numpy() for a, g in zip(acts, gradients, strict=True)])
        total = own if total is None else total + own
        for layer, a in enumerate(acts):
            n = len(base.tokenizer(probe.prompt)["input_ids"])
            kept[layer].append(a[0, :n].detach().numpy())
    return np.asarray(total) / len(probes), kept


def _values(base: Base, probes: Sequence[Probe], layers: range) -> list[list[Any]]:
    """By layer: each probe's values [pos, unit]."""
    kept = {layer: list[Any]() for layer in layers}
    with import_module("torch").no_grad():
        for probe in probes:
            batch = batch_of([to_tokens(base.tokenizer, TrainExample("", probe.prompt))])
            with reading(base, [f"mlp_act.{layer}" for layer in layers]) as found:
                base.model(input_ids=batch["ids"], attention_mask=batch["mask"])
            for layer in layers:
                kept[layer].append(found[f"mlp_act.{layer}"][0].numpy())
    return list(kept.values())


def strong_values(base: Base, probes: Sequence[Probe], layer: int) -> tuple[Any, Any]:
    """[unit]: polarity (1 or −1) of every neuron of a layer, and the mean over probes of its largest value that way."""
    found = [_strong_of(values) for values in zip(*_extremes(base, probes, layer), strict=True)]
    return np.array([one[0] for one in found]), np.array([one[1] for one in found])


def _extremes(base: Base, probes: Sequence[Probe], layer: int) -> tuple[Any, Any]:
    """[unit]: mean over probes of the largest value, and of the largest of its negative, the first token aside."""
    rows = [own[0][1:] for own in (_values(base, [probe], range(layer, layer + 1))[0] for probe in probes)]
    return np.mean([row.max(0) for row in rows], axis=0), np.mean([(-row).max(0) for row in rows], axis=0)


def _strong(rows: Sequence[Any], unit: int) -> tuple[Literal[1, -1], float]:
    """Polarity, and the mean of the largest value that way (above 0)."""
    return _strong_of(
        (np.mean([row[1:, unit].max() for row in rows]), np.mean([(-row[1:, unit]).max() for row in rows]))
    )


def _strong_of(ends: tuple[Any, Any]) -> tuple[Literal[1, -1], float]:
    """From the means of the largest value each way."""
    up, down = float(ends[0]), float(ends[1])
    return (1, max(up, 1e-6)) if up >= down else (-1, max(down, 1e-6))


def _ablated(
    base: Base, probes: Sequence[Probe], layer: int, unit: int, polarity: Literal[1, -1], strong: float
) -> float:
    """A with the neuron at 0 where it is active."""
    with pushed(base, [Push(layer, unit, 0.0, threshold=strong / 4, mode="clamp", polarity=polarity)]):
        return float(strengths(base, probes).mean())
