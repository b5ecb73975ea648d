"""What one backward pass needs of its forward: sites watched for their gradients, rules, and blocked paths.

The executor calls `enter` before the edits at each tapped site, and `leave` after them. Values are never changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np

from ...protos.gradients import RULES
from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, Site
from ..model.sites import Family
from ..ops import Ops
from .bound import BoundBackward, BoundPlan
from .metrics import BoundMetric, measure_coordinate
from .row_span import RowSpan
from .rules import gated

__all__ = ["Backward", "StopForward", "rules_of", "without_gradient"]


class StopForward(Exception):
    """Every site that matters has been reached."""


def rules_of(family: Family | None, activation: str, *, norms: bool) -> tuple[str, ...]:
    """The rules that a model can honour: those of norms need a known formula, those of MLPs their branches."""
    if family is None:
        return ()
    branches = {"mlp_gate", "mlp_act"} <= set(family.taps) - set(family.where) and bool(activation)
    offered = {"ln": norms, "identity": branches, "half": branches, "ah": family.heads and "q" not in family.where}
    return tuple(rule for rule in RULES if offered[rule])


class Backward(ABC):
    """One forward that a backward follows. A backend says how a tensor is watched and a gradient stopped.

    Each slot has its own metric; or there is one slot, and all `metrics` are measured on it.
    """

    def __init__(
        self,
        ops: Ops,
        how: BoundBackward,
        slots: SequenceOf[RowSpan],
        info: ModelInfo,
        activation: str,
        metrics: SequenceOf[BoundMetric] | None = None,
    ) -> None:
        self.ops, self.how, self.slots, self.info, self.activation = ops, how, slots, info, activation
        self.watched: dict[tuple[Site, int], Any] = {}
        """(site, slot index; −1 for the whole batch) → what a backend needs to tell its gradient."""
        self.coordinates: dict[int, Any] = {}
        """Metric → its value, for those that are coordinates of a site."""
        self.shared = metrics is not None
        """All metrics are of the one slot."""
        self.metrics = [slot.sequence.metrics[0] for slot in slots] if metrics is None else list(metrics)
        self.cuts: dict[int, tuple[Any, Any]] = {}
        """Shared and direct: layer → what reaches its MLP, and what the MLP goes on with, of which no gradient returns."""
        self.branches: dict[Site, Any] = {}
        """mlp_gate and mlp_up of the layer under way."""
        self.until: tuple[int, int] | None = None
        """Order of the site at which a forward may end."""
        self.shares: dict[int, float] = {}
        """Slot index → how far along the path it is."""
        plans = {id(slot.plan): slot.plan for slot in slots}
        self.wanted = {site for plan in plans.values() for site in _gradient_sites(plan)}
        self.targets: dict[Site, list[tuple[int, BoundMetric]]] = {}
        for index, metric in enumerate(self.metrics):
            if metric.site is not None:
                self.targets.setdefault(metric.site, []).append((index, metric))

    @property
    def sites(self) -> set[Site]:
        """Every site that the forward must show."""
        layers, found = range(self.info.n_layers), set(self.wanted) | set(self.targets)
        if self.how.rules & {"identity", "half"}:
            names = ["mlp_gate", "mlp_act"] + ["mlp_up"] * (self.info.site("mlp_up") is not None)
            found |= {Site(name, layer) for name in names for layer in layers}
        if "ah" in self.how.rules:
            found |= {Site(name, layer) for name in ("q", "k") for layer in layers}
        if self.how.direct:
            found |= {Site("mlp_in", layer) for layer in layers}
        if self.how.path is not None:
            found.add(Site.parse(self.how.path.path.site))
        return found

    @property
    def last(self) -> tuple[int, int] | None:
        """The order of the last site that matters, when no metric reads the logits."""
        if any(metric.site is None for metric in self.metrics):
            return None
        orders = [site.order for site in (*self.targets, *(site for slot in self.slots for site in slot.plan.sites))]
        unfit = {Site("logits").name, *ATTENTION_SITES}  # made after the forward, or one sequence at a time
        if any(site.name in unfit for slot in self.slots for site in slot.plan.sites):
            return None
        return None if any(order is None for order in orders) else max(order for order in orders if order is not None)

    def enter(self, site: Site, value: Any) -> Any:
        """Before the edits at a site."""
        if site.name == "mlp_act" and self.how.rules & {"identity", "half"}:
            gate = self.branches.pop(Site("mlp_gate", site.layer))
            up = self.branches.pop(Site("mlp_up", site.layer), None)
            value = gated(
                self.ops,
                self.activation,
                value,
                gate,
                up,
                identity="identity" in self.how.rules,
                half="half" in self.how.rules,
            )
        if self.how.path is not None and str(site) == self.how.path.path.site:
            return self._on_path(value)
        return value

    def leave(self, site: Site, value: Any, *, in_place: bool = False, slot: RowSpan | None = None) -> Any:
        """After them. `slot`: at attn_*, whose rows a backend computes one sequence at a time."""
        if site in self.wanted or site in self.targets:
            value = self._watch(site, -1 if slot is None else self._index(slot), value, in_place=in_place)
        for index, metric in self.targets.get(site, ()):
            at = self.slots[0 if self.shared else index]
            row = value[at.batch, at.start + metric.position - at.position]
            self.coordinates[index] = measure_coordinate(self.ops, metric, row)
        if self.until is not None and site.order == self.until:
            raise StopForward
        if site.name in ("mlp_gate", "mlp_up"):
            self.branches[site] = value
        if site.name in ("q", "k") and "ah" in self.how.rules:
            return self.ops.stop(value)
        if site.name == "mlp_in" and self.how.direct:
            return self._cut(site, value) if self.shared else self._blocked(site, value)
        return value

    def _index(self, slot: RowSpan) -> int:
        return next(i for i, own in enumerate(self.slots) if own is slot)

    def _blocked(self, site: Site, value: Any) -> Any:
        """No gradient into this layer's MLP, but for sequences whose metric is in it."""
        own = [self.slots[i].batch for i, metric in enumerate(self.metrics) if metric.mlp_layer == site.layer]
        if not own:
            return self.ops.stop(value)
        keep = np.zeros((value.shape[0], 1, 1), dtype=np.float32)
        keep[own] = 1.0
        return self.ops.where(self.ops.device(keep) > 0, value, self.ops.stop(value))

    def _cut(self, site: Site, value: Any) -> Any:
        """Part the MLP from what reaches it, so that a metric's own MLP can be crossed and no other."""
        assert site.layer is not None
        below = self._leaf(site, value)
        self.cuts[site.layer] = value, below
        return below

    def _on_path(self, value: Any) -> Any:
        assert self.how.path is not None
        ops, result = self.ops, self.ops.copy(value)
        for index, slot in enumerate(self.slots):
            source = slot.sequence.backward.path if slot.sequence.backward is not None else None
            assert source is not None
            assert source.other.source is not None
            rows = np.asarray(source.other.source)
            rows = rows[0] if source.other.per_site else rows
            other = ops.like(ops.device(rows), value)
            own = value[slot.batch, slot.start : slot.stop]
            result[slot.batch, slot.start : slot.stop] = other + self.shares[index] * (own - other)
        return result

    @abstractmethod
    def _leaf(self, site: Site, value: Any) -> Any:
        """The same values, of which gradients can be told, and which pass none on."""

    @abstractmethod
    def _watch(self, site: Site, index: int, value: Any, *, in_place: bool) -> Any:
        """Remember a tensor, so that its gradient can be told; gives the one to go on with."""


def _gradient_sites(plan: BoundPlan) -> set[Site]:
    return {
        site
        for bound in plan.hooks
        if bound.hook.capture is not None and bound.hook.capture.gradient
        for site in bound.sites
    }


def without_gradient(site: Site, rules: frozenset[str]) -> str:
    """Why a site's gradient would be zero by rule, or empty."""
    if "ah" in rules and (site.name in ("q", "k") or site.name in ATTENTION_SITES):
        return "with rule ah attention patterns are constant, so it has no gradient"
    return ""
