"""Sweeps: many plans over the same inputs, and what each does to a metric."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidArgument
from .gradients import check_targets, targets_of
from .metrics import Target
from .model import Input, named_inputs
from .spec import Plan
from .variants.use import VariantUse, checked_uses

__all__ = ["MAX_PLANS", "SweepRequest"]

MAX_PLANS = 16384


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """One forward a plan and input, each with the hooks of `base` and then the plan's own; nothing but metrics comes back.

    An empty plan measures the inputs as they are. Hooks of `base` apply to sources too, those of a plan to no source.
    """

    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]
    plans: tuple[Plan, ...]
    model: str = ""
    base: Plan = Plan()
    share: bool = True
    """Reuse what no edit can change: layers before the first edited one, keys and values of positions before it."""
    variants: tuple[VariantUse, ...] = ()
    """Of every input that names none itself, under every plan; plans name none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", checked_uses(self.variants, "the sweep"))
        object.__setattr__(self, "inputs", named_inputs(self.inputs))
        for name in ("targets", "plans"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_targets(self.inputs, self.targets)
        if not 1 <= len(self.plans) <= MAX_PLANS:
            raise InvalidArgument(f"a sweep takes 1 to {MAX_PLANS:,} plans, got {len(self.plans)}")
        for item in self.inputs:
            if not item.source_only and not targets_of(item, self.targets):
                raise InvalidArgument(f"input {item.name!r} has no target; mark it source_only, or give it one")
        for index, plan in enumerate((self.base, *self.plans)):
            for hook in plan.hooks:
                if hook.capture is not None:
                    where = "base" if index == 0 else f"plan {index - 1}"
                    raise InvalidArgument(
                        f"{where} captures at {hook.site}, but a sweep answers metrics only; use a run"
                    )
