"""What a sweep's variants share: where each one's edits begin, and so which layers and positions it must compute.

A forward is causal in both directions that matter: an edit at layer l and position p changes no earlier layer and no
earlier position. A variant therefore starts from its input's own residual stream at layer l, with rows from p on, and
reads keys and values of earlier positions from the input's own forward (the trunk).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..protos.metrics import Logit, LogitDifference, Metric
from ..protos.sites import Site
from .base import Sequence, StepResult
from .executor import Executor, Slot
from .metrics import measure_logits
from .plan import BoundHook, BoundPlan, chosen_positions

__all__ = ["Start", "Trunk", "columns_of", "grouped", "hooks_in", "measure_all", "start_of", "swept"]

NOWHERE = 1 << 30
"""The layer and position of a plan that edits nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Start:
    """The first position and layer that a variant's edits can change."""

    position: int
    layer: int

    @property
    def nowhere(self) -> bool:
        """It changes nothing."""
        return self.position >= NOWHERE


@dataclass(eq=False, slots=True)
class Trunk:
    """One input's own forward, as its variants need it."""

    n_tokens: int
    base: frozenset[int]
    """Indices of the hooks that the variants have in common with it."""
    resid: list[Any] = field(default_factory=list[Any])
    """Layer → [1, row, d_model] as it enters the layer, before any edit there."""
    keys: dict[int, Any] = field(default_factory=dict[int, Any])
    """Layer → [1, kv_head, row, d_head]."""
    values: dict[int, Any] = field(default_factory=dict[int, Any])
    measured: tuple[float, ...] = ()


def start_of(plan: BoundPlan, base: frozenset[int], tokens: list[int], n_layers: int) -> Start:
    """Where the hooks that are not the base's begin."""
    position = layer = NOWHERE
    for bound in plan.hooks:
        if bound.hook.edit is None or bound.index in base:
            continue
        positions = chosen_positions(bound, plan, tokens)
        if len(positions):
            position = min(position, int(positions[0]))
            layer = min(layer, *(_layer(site, n_layers) for site in bound.sites))
    if position == NOWHERE:
        return Start(NOWHERE, NOWHERE)
    for bound in plan.hooks:  # conditions of any hook must be seen where they read
        when = bound.hook.where.when
        if when is not None:
            if when.latch is not None:
                return Start(0, 0)
            layer = min(layer, *(_layer(bound.condition_site(site), n_layers) for site in bound.sites))
    return Start(position, layer)


def _layer(site: Site, n_layers: int) -> int:
    if site.name == "module":
        return 0  # it may lie anywhere
    if site.layer is None:
        return 0 if site.name == "embed" else n_layers - 1
    return site.layer


def grouped(variants: SequenceOf[Sequence], trunk: Trunk, n_layers: int) -> dict[int, list[tuple[int, int]]]:
    """Position → (layer, index of a variant) that starts there, by layer; those that change nothing are left out."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for index, variant in enumerate(variants):
        start = start_of(variant.plan, trunk.base, variant.tokens, n_layers)
        if not start.nowhere:
            groups.setdefault(start.position, []).append((start.layer, index))
    return {position: sorted(found) for position, found in sorted(groups.items())}


def columns_of(metrics: Iterable[Metric]) -> list[int] | None:
    """The token ids that metrics read of a row of logits; None for the whole row."""
    found: set[int] = set()
    for metric in metrics:
        if isinstance(metric, Logit) and not metric.centred:
            found.add(metric.token)
        elif isinstance(metric, LogitDifference):
            found.update(metric.correct, metric.wrong)
        else:
            return None
    return sorted(found)


def measure_all(executor: Executor, slots: SequenceOf[Slot], rows: Any, columns: list[int] | None) -> Any:
    """[slot, target] on the device, from logits [slot, target, vocab] (or of the given token ids alone)."""
    ops, metrics = executor.ops, slots[0].sequence.metrics
    if columns is not None:
        at = {token: i for i, token in enumerate(columns)}
        parts = [_of_columns(ops, metric.metric, rows[:, i], at) for i, metric in enumerate(metrics)]
        return ops.transpose_last(ops.stack(parts))
    values = [ops.stack([measure_logits(ops, m, row[i]) for i, m in enumerate(metrics)]) for row in rows]
    return ops.stack(values)


def _of_columns(ops: Any, metric: Metric, rows: Any, at: dict[int, int]) -> Any:
    if isinstance(metric, Logit):
        return rows[:, at[metric.token]]
    assert isinstance(metric, LogitDifference)
    correct, wrong = (
        ops.take(rows, ops.index(np.array([at[token] for token in ids])), -1).mean(-1)
        for ids in (metric.correct, metric.wrong)
    )
    return correct - wrong


def swept(
    variants: SequenceOf[Sequence], trunk: Trunk | None, measured: dict[int, Any], errors: dict[int, Any]
) -> list[StepResult]:
    """The outcome of each variant; one that changes nothing has what its input has."""
    results: list[StepResult] = []
    for index, variant in enumerate(variants):
        if index in errors:
            results.append(StepResult(variant, error=errors[index]))
        elif index in measured:
            results.append(StepResult(variant, measured=tuple(float(value) for value in measured[index])))
        else:
            assert trunk is not None
            results.append(StepResult(variant, measured=trunk.measured))
    return results


def hooks_in(plan: BoundPlan) -> frozenset[int]:
    """Indices of a plan's hooks."""
    found: list[BoundHook] = list(plan.hooks)
    return frozenset(bound.index for bound in found)
