"""Metrics made concrete for one sequence, and their value from a row of logits or of a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..protos.errors import InvalidArgument
from ..protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Metric, TopLogits
from ..protos.model import ModelInfo
from ..protos.sites import ATTENTION_SITES, HEAD_SITES, Site
from ..protos.spec import Capture, Hook, Where
from .bound import BoundHook
from .ops import Ops

__all__ = ["INSIDE_MLP", "BoundMetric", "bind_metric", "measure_coordinate", "measure_logits"]

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
        return (metric.token,)
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
    if metric.head is not None and metric.head >= offered.widths[0]:
        raise InvalidArgument(f"{what}: head {metric.head} is outside 0 … {offered.widths[0] - 1}")
    width = offered.widths[-1]
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


def measure_logits(ops: Ops, bound: BoundMetric, row: Any) -> Any:
    """A metric of logits ([vocab], float32 at least) as a scalar on the device."""
    metric = bound.metric
    if isinstance(metric, Logit):
        value = row[metric.token]
        return value - row.mean() if metric.centred else value
    if isinstance(metric, LogitDifference):
        correct, wrong = (ops.take(row, ops.index(np.array(ids)), 0).mean() for ids in (metric.correct, metric.wrong))
        return correct - wrong
    if isinstance(metric, TopLogits):
        _, largest = ops.top_k(ops.stop(row)[None], metric.k)
        total = ops.take(row, largest[0], 0).sum()
        return total - metric.k * row.mean() if metric.centred else total
    logprobs = ops.log_softmax(row[None])[0]
    if isinstance(metric, LogProb):
        return logprobs[metric.token]
    assert isinstance(metric, Kl)
    assert bound.baseline is not None
    assert bound.baseline.source is not None
    given = np.asarray(bound.baseline.source, dtype=np.float64).reshape(-1)
    shifted = given - given.max()
    baseline = shifted - np.log(np.exp(shifted).sum())
    p = np.exp(baseline)
    return float((p * baseline).sum()) - (ops.like(ops.device(p), logprobs) * logprobs).sum()


def measure_coordinate(ops: Ops, bound: BoundMetric, row: Any) -> Any:
    """A coordinate of a site's row ([width], or [head, width]) as a scalar on the device."""
    metric = bound.metric
    assert isinstance(metric, Coordinate)
    row = ops.f32(row if metric.head is None else row[metric.head])
    if metric.unit is not None:
        return row[metric.unit]
    assert metric.direction is not None
    return (row * ops.like(ops.device(metric.direction.floats()), row)).sum()
