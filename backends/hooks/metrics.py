"""Metrics made concrete for one sequence, and their value from a row of logits or of a site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Metric, TopLogits, WeightedSum
from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, HEAD_SITES, Site
from ...protos.spec import Capture, Hook, Where
from ..distributions import divergence, log_probability
from ..ops import Ops
from .bound import BoundHook

__all__ = [
    "INSIDE_MLP",
    "BoundMetric",
    "bind_metric",
    "columns_of",
    "measure_columns",
    "measure_coordinate",
    "measure_logits",
]

INSIDE_MLP = frozenset({"mlp_gate", "mlp_up", "mlp_act", "mlp_out"})
"""A coordinate here belongs to its layer's MLP, which `direct` does not block."""


@dataclass(eq=False, slots=True)
class BoundMetric:
    """One metric of one sequence."""

    metric: Metric
    position: int
    """Absolute."""
    baseline: BoundHook | None = None
    """Kl: the logits row of the other input, once that has run."""
    parts: tuple[BoundMetric, ...] = ()
    """Of a sum: its metrics."""

    @property
    def readings(self) -> tuple[BoundMetric, ...]:
        """What is measured of one row each: itself, or a sum's parts."""
        return self.parts or (self,)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the readings."""
        return self.metric.weights if isinstance(self.metric, WeightedSum) else (1.0,)

    @property
    def diverges(self) -> bool:
        """Whether it may be infinite."""
        return any(isinstance(reading.metric, Kl) for reading in self.readings)

    @property
    def site(self) -> Site | None:
        """Where a coordinate is read; None for metrics of logits."""
        return Site.parse(self.metric.site) if isinstance(self.metric, Coordinate) else None

    @property
    def mlp_layer(self) -> int | None:
        """The layer whose MLP the metric is part of."""
        site = self.site
        return site.layer if site is not None and site.name in INSIDE_MLP else None


def bind_metric(
    metric: Metric, info: ModelInfo, *, n_tokens: int, prompt_length: int, input_lengths: Mapping[str, int], what: str
) -> BoundMetric:
    """Check a metric against a model and a prompt. Raises InvalidArgument with the reason and the fix."""
    lengths = {"n_tokens": n_tokens, "prompt_length": prompt_length}
    if isinstance(metric, WeightedSum):
        parts = [bind_metric(m, info, **lengths, input_lengths=input_lengths, what=what) for m in metric.metrics]
        if any(metric.weights):  # 0 times −∞ is nothing, too
            parts = [part for part, weight in zip(parts, metric.weights, strict=True) if weight]
            weights = tuple(filter(None, metric.weights))
            metric = replace(metric, metrics=tuple(part.metric for part in parts), weights=weights)
        return BoundMetric(metric, max(part.position for part in parts), parts=tuple(parts))
    position = metric.position + prompt_length if metric.position < 0 else metric.position
    if not 0 <= position < n_tokens:
        raise InvalidArgument(f"{what}: position {metric.position} is outside the prompt's {n_tokens} tokens")
    if isinstance(metric, Coordinate):
        _check_coordinate(metric, info, what)
        return BoundMetric(metric, position)
    for token in _tokens_of(metric):
        if token >= info.vocab_size:
            raise InvalidArgument(f"{what}: token id {token} is outside the vocabulary 0 … {info.vocab_size - 1}")
    if isinstance(metric, TopLogits) and metric.k > info.vocab_size:
        raise InvalidArgument(f"{what}: top_logits of {metric.k} in a vocabulary of {info.vocab_size}")
    return BoundMetric(metric, position, _baseline(metric, input_lengths, what))


def _tokens_of(metric: Metric) -> tuple[int, ...]:
    if isinstance(metric, (Logit, LogProb)):
        return metric.ids
    return (*metric.correct, *metric.wrong) if isinstance(metric, LogitDifference) else ()


def _check_coordinate(metric: Coordinate, info: ModelInfo, what: str) -> None:
    site = Site.parse(metric.site)
    offered = info.site(site.name)
    if offered is None or not offered.gradients or site.name in ATTENTION_SITES or site.name == "logits":
        allowed = ", ".join(s.name for s in info.sites if s.gradients and s.name not in (*ATTENTION_SITES, "logits"))
        raise InvalidArgument(f"{what}: a coordinate cannot be read at {site}; allowed: {allowed}")
    if offered.layers is not None and site.layer not in offered.layers:
        raise InvalidArgument(f"{what}: {site.name} does not exist at layer {site.layer}; it does at {offered.layers}")
    if (site.name in HEAD_SITES) != (metric.head is not None):
        need = "needs a head" if site.name in HEAD_SITES else "has no heads"
        raise InvalidArgument(f"{what}: the coordinate's site {site} {need}")
    widths = offered.at(site.layer)
    if metric.head is not None and metric.head >= widths[0]:
        raise InvalidArgument(f"{what}: head {metric.head} is outside 0 … {widths[0] - 1}")
    width = widths[-1]
    if metric.unit is not None and metric.unit >= width:
        raise InvalidArgument(f"{what}: unit {metric.unit} is outside 0 … {width - 1}")
    if metric.direction is not None and metric.direction.shape[0] != width:
        raise InvalidArgument(f"{what}: the direction is {metric.direction.shape[0]} wide, {site} is {width} wide")


def _baseline(metric: Metric, input_lengths: Mapping[str, int], what: str) -> BoundHook | None:
    if not isinstance(metric, Kl):
        return None
    if metric.baseline not in input_lengths:
        raise InvalidArgument(f"{what}: there is no input {metric.baseline!r}; the request has {list(input_lengths)}")
    length = input_lengths[metric.baseline]
    wanted = metric.position if metric.baseline_position is None else metric.baseline_position
    position = wanted + length if wanted < 0 else wanted
    if not 0 <= position < length:
        raise InvalidArgument(f"{what}: position {wanted} is outside the {length} tokens of {metric.baseline!r}")
    hook = Hook("logits", capture=Capture(), where=Where(positions=(position,)))
    bound = BoundHook(-1, hook, (Site("logits"),))
    bound.needs = (metric.baseline, (position,))
    return bound


def measure_logits(ops: Ops, bound: BoundMetric, rows: Any) -> Any:
    """[row], wide: a metric of [row, vocab] logits on the device (of one row: not a sum)."""
    metric = bound.metric
    if isinstance(metric, LogProb):
        return log_probability(ops, rows, metric.ids)
    if isinstance(metric, Kl):
        assert bound.baseline is not None
        assert bound.baseline.source is not None
        return divergence(ops, np.asarray(bound.baseline.source), rows)
    if isinstance(metric, TopLogits):
        _, largest = ops.top_k(ops.stop(rows), metric.k)
        mean = _mean(ops, ops.take_last(rows, largest))
        return metric.k * (mean - _mean(ops, rows) if metric.centred else mean)
    value = measure_columns(ops, metric, rows, {})
    return value - _mean(ops, rows) if isinstance(metric, Logit) and metric.centred else value


def columns_of(metrics: Iterable[Metric]) -> list[int] | None:
    """The token ids that metrics read of a row of logits; None for the whole row."""
    found: set[int] = set()
    for metric in metrics:
        if isinstance(metric, Logit) and not metric.centred:
            found.update(metric.ids)
        elif isinstance(metric, LogitDifference):
            found.update(metric.correct, metric.wrong)
        else:
            return None
    return sorted(found)


def measure_columns(ops: Ops, metric: Metric, rows: Any, at: Mapping[int, int]) -> Any:
    """[row], wide: a metric that reads few logits. `at`: token id → its column, where that is not the id itself."""
    if isinstance(metric, Logit):
        return _of_tokens(ops, rows, metric.ids, at)
    assert isinstance(metric, LogitDifference)
    return _of_tokens(ops, rows, metric.correct, at) - _of_tokens(ops, rows, metric.wrong, at)


def _of_tokens(ops: Ops, rows: Any, ids: tuple[int, ...], at: Mapping[int, int]) -> Any:
    return _mean(ops, ops.take(rows, ops.index(np.array([at.get(token, token) for token in ids])), -1))


def _mean(ops: Ops, rows: Any) -> Any:
    """[row], wide."""
    return ops.sum_last(ops.wide(rows)) / int(rows.shape[-1])


def measure_coordinate(ops: Ops, bound: BoundMetric, row: Any) -> Any:
    """A coordinate of a site's row ([width], or [head, width]) as a scalar on the device."""
    metric = bound.metric
    assert isinstance(metric, Coordinate)
    row = ops.f32(row if metric.head is None else row[metric.head])
    if metric.unit is not None:
        return row[metric.unit]
    assert metric.direction is not None
    return (row * ops.like(ops.device(metric.direction.floats()), row)).sum()
