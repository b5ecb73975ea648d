"""Hooks turned into deltas where that is exact: what a checkpoint or another library's adapter can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...clients import Client
from ...protos.hooks import Hook
from ...protos.model import ModelInfo
from ...protos.spec import Plan
from ...protos.variants.delta import Delta
from ...protos.variants.manifest import Base
from ...protos.variants.variant import Variant
from .linear import Linear
from .steps import Step, step_of
from .weight_numbers import weight_numbers

__all__ = ["Baked", "bake"]


@dataclass(frozen=True, slots=True)
class Baked:
    """The variant with as few hooks as can be."""

    variant: Variant
    left: tuple[tuple[Hook, str], ...]
    """Hooks that stay, and why."""


def bake(client: Client, variant: Variant, *, model: str = "") -> Baked:
    """The same variant with hooks as deltas, each at the weight that computes its site.

    `add`, `project_out`, `affine` and `low_rank` at mlp_out and attn_out, `low_rank` at mlp_gate and mlp_up, and `scale` or zeros at
    mlp_act and z, at every token and without a condition, are exact; the rest stays. Raises FailedPrecondition for a
    variant of another model.
    """
    info = client.describe(model)
    variant = variant.bound(info)
    steps, left = _sorted(variant.plan.hooks, info)
    deltas = dict(variant.deltas)
    for weight in dict.fromkeys(step.weight for step in steps):
        linear = _linear(client, info, weight, deltas.get(weight), model)
        for step in sorted((step for step in steps if step.weight == weight), key=lambda one: not one.on_inputs):
            step.apply(linear)
        if (delta := linear.delta()) is not None:
            deltas[weight] = delta
    manifest = replace(
        variant.manifest,
        base=Base.of(info),
        method="bake",
        options={},
        made_of=({"hash": variant.hash, "name": variant.manifest.name, "scale": 1.0},),
        reports={},
    )
    return Baked(Variant(deltas, Plan(tuple(hook for hook, _ in left)), manifest), left)


def _sorted(hooks: Sequence[Hook], info: ModelInfo) -> tuple[list[Step], tuple[tuple[Hook, str], ...]]:
    """What becomes a delta, and what stays with the reason: also what would change places with a hook that stays."""
    singles = [replace(hook, site=str(site)) for hook in hooks for site in info.expand(hook.site)]
    found = [step_of(hook, info) for hook in singles]
    read = {one.site or hook.site for hook in singles if hook.where.when for one in hook.where.when.parts}
    while True:
        moved = _moved(singles, found, read)
        if moved is None:
            break
        index, why = moved
        found[index] = why
    steps = [one for one in found if isinstance(one, Step)]
    return steps, tuple((hook, one) for hook, one in zip(singles, found, strict=True) if isinstance(one, str))


def _moved(hooks: Sequence[Hook], found: Sequence[Step | str], read: set[str]) -> tuple[int, str] | None:
    """A step that would act before or behind a hook that stays where the plan has it the other way round."""
    for index, step in enumerate(found):
        if isinstance(step, str):
            continue
        site = hooks[index].site
        stay = [other for other, one in enumerate(found) if isinstance(one, str) and hooks[other].site == site]
        if any(other > index if step.on_inputs else other < index for other in stay):
            return index, f"another hook at {site} stays a hook, and their order matters"
        if site in read:
            return index, f"a condition reads {site}"
    return None


def _linear(client: Client, info: ModelInfo, weight: str, delta: Delta | None, model: str) -> Linear:
    found = weight_numbers(client, info, weight, model=model)
    return Linear.of(found.matrix, found.bias, delta)
