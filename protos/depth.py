"""Single sites whose layer is counted from the end (`resid_post.-1`), as a model of known depth has them.

A hook's own site is a pattern and is expanded where it is bound; these are the sites that hooks, metrics and paths name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from .errors import InvalidArgument
from .gradients import GradientsRequest
from .metrics import Coordinate, Target
from .model import GenerateRequest, RunRequest
from .sites import Site, SitePattern
from .spec import Condition, Hook, Plan
from .sweeps import SweepRequest

__all__ = ["plan_at_depth", "request_at_depth"]

R = TypeVar("R", GenerateRequest | RunRequest, GradientsRequest, SweepRequest)


def request_at_depth(request: R, n_layers: int) -> R:
    """The request with every layer counted from the start. Raises InvalidArgument for one that the model has not."""
    if isinstance(request, (GenerateRequest, RunRequest)):
        return replace(request, plan=plan_at_depth(request.plan, n_layers))
    targets = tuple(_target(index, target, n_layers) for index, target in enumerate(request.targets))
    if isinstance(request, SweepRequest):
        plans = tuple(plan_at_depth(plan, n_layers, f"plan {number}: ") for number, plan in enumerate(request.plans))
        return replace(request, base=plan_at_depth(request.base, n_layers), plans=plans, targets=targets)
    path = request.path
    if path is not None:
        path = replace(path, site=_resolved("path", path.site, n_layers))
    return replace(request, plan=plan_at_depth(request.plan, n_layers), targets=targets, path=path)


def plan_at_depth(plan: Plan, n_layers: int, where: str = "") -> Plan:
    """As of a request; the plan itself where it counts none from the end."""
    hooks = tuple(_hook(f"{where}hook {index}", hook, n_layers) for index, hook in enumerate(plan.hooks))
    return plan if all(new is old for new, old in zip(hooks, plan.hooks, strict=True)) else Plan(hooks)


def _hook(where: str, hook: Hook, n_layers: int) -> Hook:
    when = hook.where.when
    if when is None or not any(one.site and SitePattern.parse(one.site).from_end for one in when.parts):
        return hook
    told = f"{where} ({hook.site}): when"
    parts = tuple(replace(one, site=one.site and _resolved(told, one.site, n_layers)) for one in when.parts)
    resolved = parts[0] if isinstance(when, Condition) else replace(when, conditions=parts)
    return replace(hook, where=replace(hook.where, when=resolved))


def _target(index: int, target: Target, n_layers: int) -> Target:
    metric = target.metric
    if not isinstance(metric, Coordinate):
        return target
    return replace(target, metric=replace(metric, site=_resolved(f"target {index}", metric.site, n_layers)))


def _resolved(where: str, site: str, n_layers: int) -> str:
    if not SitePattern.parse(site).from_end:
        return site  # whoever reads it says where it is out of range
    try:
        return str(Site.parse(site, n_layers))
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from None
