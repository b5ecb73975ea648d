"""Inputs that read one another: in what order they run, and the run of each that others read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ....backends.hooks.bound import BoundHook
from ....backends.hooks.checks import from_input
from ....backends.hooks.sequence import Sequence
from ....protos.errors import InvalidArgument
from ....protos.spec import Capture, Hook, Plan, Where
from .binding import Binding
from .prepared import PreparedInput

__all__ = ["check_hook_inputs", "set_levels", "set_sources", "source_sequence"]


def check_hook_inputs(plan: Plan, lengths: Mapping[str, int]) -> None:
    """Raise InvalidArgument for hooks that name inputs which are not there."""
    for index, hook in enumerate(plan.hooks):
        unknown = [name for name in hook.inputs or () if name not in lengths]
        if unknown:
            raise InvalidArgument(
                f"hook {index} ({hook.site}): no inputs {unknown} in this request; it has {list(lengths)}"
            )


def _applies(hook: Hook, name: str) -> bool:
    """The rule of backends/plan.bind: a source is never patched with itself."""
    reads = from_input(hook.edit)
    return name in hook.inputs if hook.inputs is not None else reads is None or reads.input != name


def set_levels(inputs: list[PreparedInput], hooks: Iterable[Hook]) -> None:
    """Which inputs read which. Raises InvalidArgument when they do so in a circle."""
    reading = [(hook, found) for hook in hooks if (found := from_input(hook.edit)) is not None]
    reads = {p.item.name: {read.input for hook, read in reading if _applies(hook, p.item.name)} for p in inputs}
    by_name = {p.item.name: p for p in inputs}
    for _ in inputs:
        for name, sources in reads.items():
            levels = [by_name[s].level + 1 for s in sources if s in by_name]
            by_name[name].level = max([0, *levels])
    if any(p.level >= len(inputs) for p in inputs) and len(inputs) > 0:
        raise InvalidArgument(f"inputs read each other in a circle: { {n: sorted(s) for n, s in reads.items() if s} }")


def source_sequence(
    sequence_id: str,
    plan: Plan,
    prepared: PreparedInput,
    inputs: list[PreparedInput],
    binding: Binding,
) -> Sequence | None:
    """The run of an input that other inputs read: its own hooks, and captures of the rows they need."""
    name, wanted = prepared.item.name, dict[str, set[int]]()
    for other in inputs:
        for bound in _reading(other):
            if bound.needs is not None and bound.needs[0] == name:
                for site in bound.sites:
                    wanted.setdefault(str(site), set()).update(bound.needs[1])
    if not wanted:
        return None
    extra = tuple(
        Hook(site, capture=Capture(), where=Where(positions=tuple(sorted(positions))))
        for site, positions in wanted.items()
    )
    edits = tuple(
        replace(hook, capture=None, inputs=(name,))
        for hook in (*plan.hooks[binding.n_own :], *plan.hooks[: binding.n_own])
        if hook.edit is not None and _applies(hook, name)
    )
    bound = binding.bound(Plan((*edits, *extra)), "run", prepared)
    return Sequence(sequence_id, list(prepared.tokens), bound.prompt_length, bound)


def _reading(prepared: PreparedInput) -> Iterator[BoundHook]:
    for sequence in (prepared.sequence, prepared.source):
        if sequence is not None:
            yield from sequence.reading()
    for variant in prepared.variants:
        yield from variant.hooks


def set_sources(plan: Plan, inputs: list[PreparedInput], binding: Binding) -> None:
    """Give every input that others read its run."""
    for index, prepared in enumerate(inputs):
        name = f"{binding.request_id}.{index}.source"
        prepared.source = source_sequence(name, plan, prepared, inputs, binding)
