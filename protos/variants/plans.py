"""Plans that belong to a variant: edits alone, which need nothing but the values at their site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from ..edits import Edit, FromInput, Replace, Scale, Stored
from ..errors import InvalidArgument
from ..hooks import Hook
from ..spec import Plan

__all__ = ["MAX_VARIANT_HOOKS", "checked_plan", "joined_plans", "scaled_plan"]

MAX_VARIANT_HOOKS = 256


def checked_plan(plan: Plan) -> Plan:
    """The plan itself. Raises InvalidArgument for hooks that read, or that need a request's own inputs or captures."""
    if len(plan.hooks) > MAX_VARIANT_HOOKS:
        raise InvalidArgument(f"a variant has at most {MAX_VARIANT_HOOKS} hooks, got {len(plan.hooks)}")
    for hook in plan.hooks:
        if hook.capture is not None:
            raise InvalidArgument(
                f"a variant's hook at {hook.site} captures; its plan only edits: capture in the request"
            )
        if hook.inputs is not None:
            raise InvalidArgument(f"a variant's hook at {hook.site} names inputs {list(hook.inputs)}; leave inputs out")
        if isinstance(hook.edit, Replace) and isinstance(hook.edit.source, (FromInput, Stored)):
            kind = "another input" if isinstance(hook.edit.source, FromInput) else "a stored capture"
            raise InvalidArgument(
                f"a variant's hook at {hook.site} replaces by {kind}; send the values along (constant, inline)"
            )
    return plan


def joined_plans(one: Plan, other: Plan) -> Plan:
    """The hooks of both, in order; an id that both have is dropped from the second's."""
    ids = {hook.id for hook in one.hooks}
    renamed = (hook if hook.id is None or hook.id not in ids else replace(hook, id=None) for hook in other.hooks)
    return Plan((*one.hooks, *renamed))


def scaled_plan(plan: Plan, factor: float) -> Plan:
    """Hooks at `factor` of their strength: h + factor·(edit(h) − h). Raises InvalidArgument for edits that have none."""
    return plan if factor == 1 else Plan(tuple(_scaled(hook, factor) for hook in plan.hooks))


def _scaled(hook: Hook, factor: float) -> Hook:
    edit: Edit | None = hook.edit
    if isinstance(edit, Scale):
        return replace(hook, edit=replace(edit, factor=1 + factor * (edit.factor - 1)))
    alpha: Any = getattr(edit, "alpha", None)  # of add, low_rank, affine
    if edit is None or alpha is None:
        raise InvalidArgument(
            f"the variant's hook at {hook.site} ({type(edit).__name__}) has no strength; name the variant at scale 1"
        )
    changed: Any = replace(cast("Any", edit), alpha=alpha * factor)
    return replace(hook, edit=changed)
