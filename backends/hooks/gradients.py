"""What both backends do alike around a backward pass: rows of a batch before it, and each sequence's outcome after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence as SequenceOf
from typing import Any

import numpy as np

from ...protos.latents import ReadLatents
from ...protos.sites import Site
from ...protos.spec import Hook
from .backward import Backward
from .captures import flush_reductions
from .executor import Executor
from .metrics import measure_logits
from .overflow import not_measured
from .row_span import RowSpan
from .sequence import Sequence, StepResult

__all__ = ["finish", "one_prompt", "rows_of", "slots_of", "spread", "values_of"]

_LOGITS = Site("logits")


def rows_of(sequence: Sequence) -> int:
    """Token rows that a gradient of the sequence takes: a path is a batch of its points."""
    path = None if sequence.backward is None else sequence.backward.path
    return len(sequence.tokens) * (1 if path is None else path.path.steps)


def slots_of(sequences: SequenceOf[Sequence]) -> tuple[list[RowSpan], list[float], tuple[int, int]]:
    """Slots of one right-padded batch, how far along its path each is, and the batch's layout."""
    slots: list[RowSpan] = []
    shares: list[float] = []
    for sequence in sequences:
        assert sequence.backward is not None
        steps = 1 if sequence.backward.path is None else sequence.backward.path.path.steps
        for k in range(steps):
            tokens = np.array(sequence.tokens, dtype=np.int64)
            slots.append(RowSpan(sequence, len(slots), 0, len(tokens), 0, tokens))
            shares.append(k / steps)
    return slots, shares, (len(slots), max(slot.stop for slot in slots))


def one_prompt(sequences: SequenceOf[Sequence]) -> bool:
    """Whether they are one prompt with several targets, read and edited in no other way: one forward serves them all."""
    first = sequences[0]
    if len(sequences) < 2 or (first.backward is not None and first.backward.path is not None):
        return False
    if Site("logits") in first.plan.sites:
        return False  # a metric's row of logits is made of its own
    return all(
        s.tokens == first.tokens
        and s.plan.sites == first.plan.sites  # the one forward watches the first one's sites
        and all(_only_gradient(b.hook) for b in s.plan.hooks)
        and _weights(s) == _weights(first)
        for s in sequences
    )


def _weights(sequence: Sequence) -> list[object]:
    """What it runs with beside the base's."""
    return [(use.key, use.where) for use in sequence.plan.uses]


def _only_gradient(hook: Hook) -> bool:
    capture = hook.capture
    latents = capture is not None and isinstance(capture.reduce, ReadLatents)  # which need rows of their own
    return hook.edit is None and capture is not None and capture.gradient and not latents


def spread(executor: Executor, slot: RowSpan, sequences: SequenceOf[Sequence]) -> list[RowSpan]:
    """A slot of its own for each sequence that one forward served, as if it had been a batch."""
    slots = [
        RowSpan(sequence, i, slot.start, slot.stop, slot.position, slot.tokens) for i, sequence in enumerate(sequences)
    ]
    for each in slots:
        each.error = slot.error
    executor.slots = slots
    return slots


def values_of(
    executor: Executor,
    backward: Backward,
    slots: SequenceOf[RowSpan],
    hidden: Any,
    head: Callable[[RowSpan, Any, SequenceOf[int]], Any],
) -> dict[int, Any]:
    """Metric → its value, wide; none of a slot that has failed. `head`: final-norm rows to a slot's logits at positions."""
    ops, values = executor.ops, dict[int, Any]()
    for index, metric in enumerate(backward.metrics):
        slot = slots[0 if backward.shared else index]
        if slot.error is not None:
            continue
        if metric.site is None:
            rows = head(slot, hidden, [reading.position for reading in metric.readings])
            ops.near(rows)
            pairs = enumerate(zip(metric.weights, metric.readings, strict=True))
            parts = [weight * measure_logits(ops, part, rows[i : i + 1])[0] for i, (weight, part) in pairs]
            values[index] = ops.stack(parts).sum()
        else:
            values[index] = ops.wide(backward.coordinates[index])
            if _LOGITS in slot.plan.sites:
                head(slot, hidden, [metric.position])
    return values


def finish(
    executor: Executor, slots: list[RowSpan], values: Mapping[int, Any], grads: Mapping[tuple[Site, int], Any]
) -> list[StepResult]:
    """Each sequence's gradients (averaged over the points of its path), captured values and metric, on the host."""
    parts: dict[int, list[int]] = {}
    for index, slot in enumerate(slots):
        parts.setdefault(id(slot.sequence), []).append(index)
    for indices in parts.values():
        for site, rows in _own_gradients(slots, indices, grads):
            executor.add_gradient(site, slots[indices[0]], rows)
    measured = _on_host(executor, values)
    captured = executor.collect()
    results: list[StepResult] = []
    for indices in parts.values():
        slot = slots[indices[0]]
        error = next((slots[i].error for i in indices if slots[i].error is not None), None)
        if error is not None:
            results.append(StepResult(slot.sequence, error=error))
            continue
        metrics = [slots[i].sequence.metrics[0] for i in indices]
        if fault := not_measured(metrics, [measured[i] for i in indices]):
            results.append(StepResult(slot.sequence, error=fault))
            continue
        rows = captured.get(id(slot.sequence), []) + flush_reductions(slot.plan)
        results.append(StepResult(slot.sequence, tuple(rows), measured=tuple(measured[i] for i in indices)))
    return results


def _own_gradients(
    slots: list[RowSpan], indices: list[int], grads: Mapping[tuple[Site, int], Any]
) -> list[tuple[Site, Any]]:
    pieces: dict[Site, list[Any]] = {}
    for (site, owner), grad in grads.items():
        if owner in indices:
            pieces.setdefault(site, []).append(grad[0] if site.name == "logits" else grad)
        elif owner < 0:
            own = [grad[slots[i].batch, slots[i].start : slots[i].stop] for i in indices]
            pieces.setdefault(site, []).extend(own)
    return [(site, p[0] if len(p) == 1 else sum(p[1:], p[0]) / len(p)) for site, p in pieces.items()]


def _on_host(executor: Executor, values: Mapping[int, Any]) -> dict[int, float]:
    arrays = executor.ops.to_host([value.reshape(1) for value in values.values()])
    return {index: float(array[0]) for index, array in zip(values, arrays, strict=True)}
