"""A condition of one model for another: its direction by the map of their streams, its threshold by algebra or by equal shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Condition, Tensor, capture
from ...protos.errors import FailedPrecondition, InvalidArgument
from ..steering.conditions import FittedCondition
from .model_map import ModelMap, Place, described

__all__ = ["TransferredCondition", "transfer_condition"]

Floats = NDArray[np.float64]
_HOLDS = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}
LEAST = 4
"""Prompts: with fewer a share is no threshold."""


@dataclass(frozen=True, slots=True, eq=False)
class TransferredCondition:
    """A condition for the target, and on how many prompts it says what the source's says."""

    condition: Condition
    map: ModelMap
    source: NDArray[np.bool_]
    """[prompt]: whether the condition holds at the source."""
    target: NDArray[np.bool_]
    level: str = "2: directions, by a map of the streams"

    @property
    def agreement(self) -> float:
        """Share of prompts on which the two say the same; a constant answer has it too where the shares are uneven."""
        return float((self.source == self.target).mean())

    def __str__(self) -> str:
        return (
            f"level {self.level}; {self.map}; holds for {self.source.mean():.0%} of {len(self.source)} prompts at the source and "
            f"{self.target.mean():.0%} at the target, the same answer for {self.agreement:.0%}"
        )


def transfer_condition(
    source: Place, condition: FittedCondition | Condition, target: Place, by: ModelMap, prompts: Sequence[str]
) -> TransferredCondition:
    """A condition on a direction at the map's source layer, for the map's target layer. Level 2.

    The target's row is read back through the pseudo-inverse of T: d′ = T⁺ᵀd, threshold + d·T⁺b. A cosine survives only a
    rotation, so a normalised condition takes the threshold at which as many of `prompts` hold as at the source: give both
    kinds. Agreement is of those prompts too, so judge it on others. Raises InvalidArgument for a condition on a unit, on
    another site, and for fewer than four prompts; FailedPrecondition for other models than the map's.
    """
    when = condition.condition if isinstance(condition, FittedCondition) else condition
    sites = tuple(f"{by.site}.{layer}" for layer in by.layers)
    if when.direction is None:
        raise InvalidArgument(
            "the condition is on a unit, which has no counterpart in another model; fit one on a direction"
        )
    if when.site != sites[0]:
        raise InvalidArgument(
            f"the condition reads {when.site or 'the site of its hook'}, and the map leads from {sites[0]}"
        )
    if len(prompts) < LEAST:
        raise InvalidArgument(f"{len(prompts)} prompts; give {LEAST} or more, of both kinds")
    for place, known in zip((source, target), by.hashes, strict=True):
        if described(place).model_hash != known:
            raise FailedPrecondition("source and target are not the models that the map was fitted between")
    back: Any = np.linalg.pinv(by.matrix)
    direction = when.direction.numpy().astype(np.float64)
    moved = replace(
        when,
        site=sites[1],
        direction=Tensor.of((direction @ back).astype(np.float32)),
        threshold=when.threshold + (0.0 if when.normalise else float(direction @ (back @ by.bias))),
    )
    here, there = _read(source, when, prompts), _read(target, moved, prompts)
    holds = _HOLDS[when.op]
    before = holds(here, when.threshold)
    if when.normalise:
        moved = replace(moved, threshold=_at_share(there, int(before.sum()), when.op))
    return TransferredCondition(moved, by, before, holds(there, moved.threshold))


def _at_share(values: Floats, n: int, op: str) -> float:
    """Midway between the n-th and the next value from the side that holds; beyond all of them where all or none do."""
    ordered = np.sort(values)
    if op in ("gt", "ge"):
        n = len(ordered) - n
    edges = np.concatenate([[ordered[0] - 1e-3], ordered, [ordered[-1] + 1e-3]])
    return float((edges[n] + edges[n + 1]) / 2)


def _read(place: Place, when: Condition, prompts: Sequence[str]) -> Floats:
    """[prompt]: the coordinate as the condition reads it once a prompt: a mean over rows, or the last row's."""
    client, model = place if isinstance(place, tuple) else (place, "")
    assert when.direction is not None
    direction = when.direction.numpy().astype(np.float64)
    found: list[float] = []
    for start in range(0, len(prompts), 32):
        found += _some(client, model, when, direction, prompts[start : start + 32])
    return np.array(found)


def _some(client: Client, model: str, when: Condition, direction: Floats, prompts: Sequence[str]) -> list[float]:
    run = client.run(list(prompts), capture=[capture(when.site)], model=model, progress=False)
    values: list[float] = []
    for item in run.inputs.values():
        rows = np.asarray(item[when.site], dtype=np.float64)
        read = rows @ direction
        if when.normalise:
            size = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
            read = np.divide(read, size, out=np.zeros_like(read), where=size > 0)
        values.append(float(read.mean() if when.latch == "mean" else read[-1]))
    return values
