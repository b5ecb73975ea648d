"""What a sweep's variants share: where each one's edits begin, and so which layers and positions it must compute.

A forward is causal in both directions that matter: an edit at layer l and position p changes no earlier layer and no
earlier position. A variant therefore starts from its input's own residual stream at layer l, with rows from p on, and
reads keys and values of earlier positions from the input's own forward (the prefix).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import Unsupported
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ..ops import Ops
from .bound import BoundPlan, chosen_positions
from .executor import Executor
from .metrics import BoundMetric, columns_of, measure_columns, measure_logits
from .overflow import not_measured
from .row_span import RowSpan
from .sequence import Sequence, StepResult

__all__ = ["WHOLE", "SharedPrefix", "Start", "Sweeps", "grouped", "hooks_in", "no_sweeps", "start_of"]

_LOGITS = Site("logits")


def no_sweeps(info: ModelInfo) -> Unsupported:
    """Of a model whose sequences can share nothing, or must not."""
    why = info.refused.get("sweeps", "a sweep's plans share keys and values, which not every layer has")
    return Unsupported(
        f"{info.architecture} on {info.backend} takes no sweeps: {why}; send each plan as a run of its own, with the logits captured"
    )


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


WHOLE = Start(-1, 0)
"""Of a plan with raw modules: they may lie anywhere, so it shares nothing."""


@dataclass(eq=False, slots=True)
class SharedPrefix:
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
    """Of each reading of its metrics."""


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
    if any(site.name == "module" for site in plan.sites):
        return WHOLE
    for bound in plan.hooks:  # conditions of any hook must be seen where they read
        when = bound.hook.where.when
        if when is not None:
            if when.latched:
                return Start(0, 0)
            layer = min(
                layer, *(_layer(read, n_layers) for site in bound.sites for read in bound.condition_sites(site))
            )
    return Start(position, layer)


def _layer(site: Site, n_layers: int) -> int:
    if site.layer is None:
        return 0 if site.name == "embed" else n_layers - 1
    return site.layer


def grouped(variants: SequenceOf[Sequence], prefix: SharedPrefix, n_layers: int) -> dict[int, list[tuple[int, int]]]:
    """Position → (layer, index of a variant) that starts there, by layer; those that change nothing are left out."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for index, variant in enumerate(variants):
        start = start_of(variant.plan, prefix.base, variant.tokens, n_layers)
        if not start.nowhere:
            groups.setdefault(start.position, []).append((start.layer, index))
    return {position: sorted(found) for position, found in sorted(groups.items())}


def _measure(ops: Ops, readings: SequenceOf[BoundMetric], rows: list[Any], columns: list[int] | None) -> Any:
    """[reading, slot] on the device, from logits [slot, vocab] for each reading (or of the given token ids alone)."""
    pairs = zip(readings, rows, strict=True)
    if columns is None:
        return ops.stack([measure_logits(ops, reading, own) for reading, own in pairs])
    at = {token: i for i, token in enumerate(columns)}
    return ops.stack([measure_columns(ops, reading.metric, own, at) for reading, own in pairs])


def hooks_in(plan: BoundPlan) -> frozenset[int]:
    """Indices of a plan's hooks."""
    return frozenset(bound.index for bound in plan.hooks)


class Sweeps(ABC):
    """Measures variants on one model. A backend says how rows join a forward that is under way."""

    def __init__(self, executor: Executor, n_layers: int) -> None:
        self.executor, self.n_layers = executor, n_layers

    def shared_prefix(self, base: Sequence) -> SharedPrefix:
        """See Backend.prefix. Raises what a hook of the base raised."""
        prefix = SharedPrefix(len(base.tokens), hooks_in(base.plan), [None] * self.n_layers)
        with self._recording(prefix):
            [slot], [values] = self._whole_forwards([base])
        if slot.error is not None:
            raise slot.error
        prefix.measured = tuple(float(v) for v in values)
        return prefix

    def __call__(self, variants: SequenceOf[Sequence], prefix: SharedPrefix | None) -> list[StepResult]:
        """See Backend.sweep."""
        if prefix is None:
            slots, values = self._whole_forwards(variants)
            return [_result(slot, found) for slot, found in zip(slots, values, strict=True)]
        results: dict[int, StepResult] = {}
        for position, entering in grouped(variants, prefix, self.n_layers).items():
            if position == WHOLE.position:
                whole = zip(entering, *self._whole_forwards([variants[index] for _, index in entering]), strict=True)
                results.update({index: _result(slot, found) for (_, index), slot, found in whole})
                continue
            slots = [_slot(variants[index], row, position) for row, (_, index) in enumerate(entering)]
            self._begin(slots, (len(slots), prefix.n_tokens - position))
            hidden = self._rest(prefix, position, [layer for layer, _ in entering], slots)
            self.executor.slots = [slot for slot in slots if slot.plan.at]
            values = self._measured(slots, hidden, position, prefix)
            for (_, index), slot, found in zip(entering, slots, values, strict=True):
                results[index] = _result(slot, found)
        return [  # variants that change nothing measure what the prefix does
            results.get(i) or StepResult(variant, measured=_targets(variant, prefix.measured))
            for i, variant in enumerate(variants)
        ]

    def _whole_forwards(self, variants: SequenceOf[Sequence]) -> tuple[list[RowSpan], NDArray[np.float64]]:
        """As a run has them."""
        slots = [_slot(variant, row, 0) for row, variant in enumerate(variants)]
        tokens = np.array([variant.tokens for variant in variants], dtype=np.int64)
        self._begin(slots, (tokens.shape[0], tokens.shape[1]))
        return slots, self._measured(slots, self._whole(tokens), 0, None)

    def _measured(
        self, slots: list[RowSpan], hidden: Any, position: int, prefix: SharedPrefix | None
    ) -> NDArray[np.float64]:
        """[slot, reading], on the host."""
        ops = self.executor.ops
        readings = [reading for metric in slots[0].sequence.metrics for reading in metric.readings]
        at = [reading.position - position for reading in readings]  # below 0: nothing from here on can change it
        places = sorted({max(i, 0) for i in at})
        tapped = any(_LOGITS in slot.plan.sites for slot in slots)
        columns = None if tapped else columns_of(reading.metric for reading in readings)
        if tapped:
            whole = [self._tap_logits(slot, hidden)[0] for slot in slots]
            rows = [ops.stack([logits[i] for logits in whole]) for i in places]
        else:
            with self.executor.deltas.head((slot, [position + i]) for i in places for slot in slots):
                rows = self._logits(ops.stack([hidden[:, i] for i in places]), columns)
        rows = [rows[places.index(max(i, 0))] for i in at]
        ops.near(rows[0])
        [found] = ops.to_host([_measure(ops, readings, rows, columns)])
        self.executor.collect()
        values = np.asarray(found, dtype=np.float64).T.copy()
        for reading, i in enumerate(at):
            if i < 0:
                assert prefix is not None
                values[:, reading] = prefix.measured[reading]
        return values

    def join(self, slots: list[RowSpan], n_rows: int) -> None:
        """From here on the batch is these sequences."""
        self.executor.hold(slots, (len(slots), n_rows))

    @abstractmethod
    def _begin(self, slots: list[RowSpan], layout: tuple[int, int]) -> None:
        """Get hooks ready for a forward."""

    @abstractmethod
    def _recording(self, prefix: SharedPrefix) -> AbstractContextManager[None]:
        """Forwards inside fill the prefix."""

    @abstractmethod
    def _whole(self, tokens: NDArray[np.int64]) -> Any:
        """Final-norm rows of [batch, row] tokens."""

    @abstractmethod
    def _rest(self, prefix: SharedPrefix, position: int, starts: list[int], slots: list[RowSpan]) -> Any:
        """Final-norm rows from `position` on of sequences that join at their start layers, in order."""

    @abstractmethod
    def _logits(self, hidden: Any, columns: list[int] | None) -> Any:
        """Logits of final-norm rows, of all tokens or of some."""

    @abstractmethod
    def _tap_logits(self, slot: RowSpan, hidden: Any) -> Any:
        """[1, row, vocab] of a slot, after its edits."""


def _result(slot: RowSpan, values: NDArray[np.float64]) -> StepResult:
    if slot.error is not None:
        return StepResult(slot.sequence, error=slot.error)
    measured = _targets(slot.sequence, values)
    if fault := not_measured(slot.sequence.metrics, measured):
        return StepResult(slot.sequence, error=fault)
    return StepResult(slot.sequence, measured=measured)


def _targets(sequence: Sequence, readings: SequenceOf[float] | NDArray[np.float64]) -> tuple[float, ...]:
    """A sequence's metrics, from what was read for them."""
    rest = iter(readings)
    weights = [metric.weights for metric in sequence.metrics]
    return tuple(float(sum(weight * next(rest) for weight in own)) for own in weights)


def _slot(sequence: Sequence, row: int, position: int) -> RowSpan:
    tokens = np.array(sequence.tokens[position:], dtype=np.int64)
    slot = RowSpan(sequence, row, 0, len(tokens), position, tokens)
    slot.keys = (0, len(sequence.tokens))
    return slot
