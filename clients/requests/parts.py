"""A call of more inputs than a request takes, cut into requests that mean the same together.

An input stays together with those that its patches, baseline or path read: these come along as sources, in as many parts
as need them. A hook of inputs that are all elsewhere is left out of a part, and the answers tell of hooks by their place
in the whole plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...protos.errors import InvalidArgument
from ...protos.metrics import Target
from ...protos.model import MAX_INPUTS, Event, Input, ResolvedHook, Revised, Started, TensorFrame
from ...protos.spec import Hook, Plan
from .asked import Asked, reads_of

__all__ = ["Part", "part_from", "require_parts", "whole"]


@dataclass(frozen=True, slots=True)
class Part:
    """Some inputs of a call, as a call of their own."""

    asked: Asked
    stop: int
    """Index of the first input of the whole call that no part has answered yet."""
    hooks: tuple[int, ...]
    """Index in the whole plan of each of its hooks."""
    n_hooks: int
    """Of the whole plan."""

    def told(self, event: Event) -> Event:
        """An event as the whole call would have had it: hooks have their places in the whole plan."""
        if self.hooks == tuple(range(self.n_hooks)):
            return event
        if isinstance(event, (Started, Revised)):
            return replace(event, hooks=tuple(self._resolved(hook) for hook in event.hooks))
        if isinstance(event, TensorFrame):
            index, name = self._place(event.hook, event.id)
            return replace(event, hook=index, id=name)
        return event

    def _resolved(self, hook: ResolvedHook) -> ResolvedHook:
        index, name = self._place(hook.hook, hook.id)
        return replace(hook, hook=index, id=name)

    def _place(self, index: int, name: str) -> tuple[int, str]:
        """Those past the part's own hooks are its session's."""
        own = index < len(self.hooks)
        whole = self.hooks[index] if own else index - len(self.hooks) + self.n_hooks
        given = own and self.asked.plan.hooks[index].id is not None
        return whole, name if given or name != f"hook{index}" else f"hook{whole}"


def whole(asked: Asked) -> Part:
    """A call as one part."""
    n_hooks = len(asked.plan.hooks)
    return Part(asked, len(asked.inputs), tuple(range(n_hooks)), n_hooks)


def require_parts(asked: Asked) -> dict[str, set[str]]:
    """What each input reads (`reads_of`), for `part_from`. Raises InvalidArgument for a call that no parts can be.

    Everything is checked here that a value can tell, so that nothing is sent of a call whose last part is refused.
    """
    reads = reads_of(asked)
    if len(reads) != len(asked.inputs):
        raise InvalidArgument("inputs need distinct names; leave names out, or give each its own")
    used: set[str] = set()
    part = part_from(asked, reads, 0)
    while part is not None:
        part.asked.request()
        used.update(item.name for item in part.asked.inputs)
        part = part_from(asked, reads, part.stop)
    unread = [item.name for item in asked.inputs if item.name not in used]
    if unread:
        raise InvalidArgument(f"inputs {unread[:8]} are source_only, but no other input reads them; leave them out")
    return reads


def part_from(asked: Asked, reads: Mapping[str, set[str]], at: int, most: int = MAX_INPUTS) -> Part | None:
    """The longest part from the `at`th input on that answers at most `most` inputs and fits a request; None at the end.

    It is a piece of the call's own order, so that with a seed every input samples as in one request.
    Raises InvalidArgument for an input that reads more others than fit beside it.
    """
    inputs = asked.inputs
    at = next((index for index in range(at, len(inputs)) if not inputs[index].source_only), len(inputs))
    if at == len(inputs):
        return None
    stop, start = at, at
    chosen: dict[str, None] = {}
    answers = 0
    while at < len(inputs) and answers < most:
        grown = {**chosen, **_with_sources(inputs[at].name, reads)}
        if len(grown) > MAX_INPUTS:
            break
        chosen = grown
        at += 1
        if not inputs[at - 1].source_only:
            answers, stop = answers + 1, at
    if stop == start:
        raise InvalidArgument(
            f"input {inputs[start].name!r} reads {len(_with_sources(inputs[start].name, reads)) - 1} other inputs, and a request "
            f"takes {MAX_INPUTS} in all; read fewer"
        )
    own = inputs[start:stop]
    needed = {name for item in own for name in _with_sources(item.name, reads)} - {item.name for item in own}
    extra = [replace(item, source_only=True) for item in inputs if item.name in needed]
    return _part(asked, (*own, *extra), start, stop)


def _with_sources(name: str, reads: Mapping[str, set[str]]) -> dict[str, None]:
    """The input and all that it reads, what these read among them."""
    found: dict[str, None] = {}
    left = [name]
    while left:
        one = left.pop()
        if one not in found:
            found[one] = None
            left += sorted(reads[one])
    return found


def _part(asked: Asked, inputs: tuple[Input, ...], start: int, stop: int) -> Part:
    names = {item.name for item in inputs}
    kept = [(index, found) for index, hook in enumerate(asked.plan.hooks) if (found := _for(hook, names)) is not None]
    answered = {item.name for item in inputs if not item.source_only}
    sampling = asked.sampling
    if sampling.seed is not None:  # input i of a request samples with seed + i
        sampling = replace(sampling, seed=sampling.seed + start)
    part = replace(
        asked,
        inputs=inputs,
        plan=Plan(tuple(hook for _, hook in kept)),
        sampling=sampling,
        targets=tuple(found for target in asked.targets if (found := _target_for(target, answered)) is not None),
        plans=tuple(_plan_for(plan, names) for plan in asked.plans),
    )
    return Part(part, stop, tuple(index for index, _ in kept), len(asked.plan.hooks))


def _plan_for(plan: Plan, names: set[str]) -> Plan:
    if all(hook.inputs is None for hook in plan.hooks):
        return plan
    return Plan(tuple(found for hook in plan.hooks if (found := _for(hook, names)) is not None))


def _for(hook: Hook, names: set[str]) -> Hook | None:
    """A hook for some inputs alone; None where it applies to none of them."""
    if hook.inputs is None or names.issuperset(hook.inputs):
        return hook
    inputs = tuple(name for name in hook.inputs if name in names)
    return replace(hook, inputs=inputs) if inputs else None


def _target_for(target: Target, names: set[str]) -> Target | None:
    if target.inputs is None:
        return target
    inputs = tuple(name for name in target.inputs if name in names)
    return replace(target, inputs=inputs) if inputs else None
