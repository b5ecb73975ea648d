"""Does a unit matter to several domains? Its ablation's rise in loss in each, beside neurons that are as active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Constant, Input, NextLogprob, Replace, capture, hook
from ...protos.errors import InvalidArgument
from ..ablation.controls import MIN_CONTROLS, matched_controls, z_score
from .entanglement import Entanglement
from .rows import DomainRows

__all__ = ["causal_check"]

Floats = NDArray[np.float64]


def causal_check(
    client: Client,
    found: Entanglement,
    rows: DomainRows,
    *,
    units: Sequence[int] | None = None,
    most: int = 20,
    windows: int = 4,
    controls: int = MIN_CONTROLS,
    seed: int = 0,
    model: str = "",
) -> Entanglement:
    """The same with `losses`: for the first `most` entangled units (or `units`), how many deviations above matched neurons
    their mean ablation raises each domain's loss, on `windows` blocks of each. A part in two domains takes z ≥ 2 in both.

    Neurons only: `rows` are those of a site without an SAE. Costs a forward over all blocks for each unit and control.
    """
    if "(" in rows.site:
        raise InvalidArgument(f"{rows.site} are latents; the check ablates neurons of a site")
    chosen = list(found.entangled[:most] if units is None else units)
    if not chosen:
        return found
    blocks = [block for d in range(len(rows.names)) for block in _of(rows, d, windows)]
    means = rows.values.mean(axis=0)
    rng = np.random.default_rng(seed)
    strengths = np.abs(rows.values).mean(axis=0).astype(np.float64)
    matched = {unit: [one for (one,) in matched_controls(strengths, [unit], controls, rng)] for unit in chosen}
    plain = _losses(client, rows, blocks, None, 0.0, model)
    rises: dict[int, Floats] = {}
    for unit in {*chosen, *(one for some in matched.values() for one in some)}:
        rises[unit] = _losses(client, rows, blocks, unit, float(means[unit]), model) - plain
    losses: dict[int, Mapping[str, float]] = {}
    for unit in chosen:
        beside = np.stack([rises[one] for one in matched[unit]])
        losses[unit] = {name: z_score(float(rises[unit][d]), beside[:, d]) for d, name in enumerate(rows.names)}
    return replace(found, losses=losses)


def _of(rows: DomainRows, domain: int, windows: int) -> list[int]:
    return np.unique(rows.block[rows.domain == domain])[:windows].tolist()


def _losses(
    client: Client, rows: DomainRows, blocks: Sequence[int], unit: int | None, mean: float, model: str
) -> Floats:
    """[domain]: mean −log p of what follows, in nats, with a unit at its mean."""
    inputs = [Input(token_ids=tuple(rows.token[rows.block == block].tolist()), name=str(block)) for block in blocks]
    value = np.array([mean], dtype=np.float32)
    edit = Replace(Constant(value), units=None if unit is None else (unit,))  # pyright: ignore[reportArgumentType] - anything array-like
    hooks = [] if unit is None else [hook(rows.site, edit)]
    run = client.run(inputs, hooks=hooks, capture=[capture("logits", reduce=NextLogprob())], model=model)
    total, count = np.zeros(len(rows.names)), np.zeros(len(rows.names))
    for block in blocks:
        domain = int(rows.domain[rows.block == block][0])
        found = np.asarray(run.inputs[str(block)]["logits"], dtype=np.float64)
        total[domain] -= found.sum()
        count[domain] += found.size
    return total / np.maximum(count, 1)
