"""A request made ready for the model's thread: its inputs with their plans, and what it says when it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ....backends.hooks.bound import BoundHook, BoundPlan, Mode
from ....backends.hooks.plan import succeed
from ....backends.hooks.sequence import Sequence
from ....backends.hooks.source_rows import give_rows
from ....protos.model import Input, ResolvedHook, Started
from ....protos.sessions import Session
from ....protos.spec import Plan
from ....protos.tensors import Array
from ....protos.variants.use import UsedVariant

__all__ = ["Prepared", "PreparedInput", "give_known_rows", "resolved"]


@dataclass(eq=False, slots=True)
class PreparedInput:
    """One input with its bound plan(s)."""

    item: Input
    tokens: list[int]
    generates: bool
    sequence: Sequence | None = None
    """The sequence whose events the caller gets; None for an input that is a source only."""
    source: Sequence | None = None
    """The run that other inputs' hooks read."""
    level: int = 0
    """0: reads nobody; n: reads inputs of level n − 1 at most."""
    variants: list[BoundPlan] = field(default_factory=list[BoundPlan])
    """A sweep's plans; `sequence` is then the input as it is."""
    order: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """(token rows, index of a variant) in the order in which they share best."""
    n_swept: int = 0
    """How many of them are measured."""
    source_queued: bool = False
    queued: bool = False
    """Its next forward waits for its turn."""
    ended: bool = False
    """Its last token is out: a live session changes nothing for it any more."""


@dataclass(eq=False, slots=True)
class Prepared:
    """A whole request, accepted."""

    id: str
    mode: Mode
    plan: Plan
    inputs: list[PreparedInput]
    started: Started
    store_bytes: int = 0
    session: str = ""
    """Id of the live session that it follows."""
    own_plan: Plan = Plan()
    """What the request asked for itself."""
    rebind: Callable[[PreparedInput, Session], list[tuple[Sequence, BoundPlan]]] | None = None
    """The plans of an input's sequences under another revision of the session."""
    plans: dict[int, Plan] = field(default_factory=dict[int, Plan])
    """Revision → what it asks for, of all revisions that it has run under."""
    used: dict[int, tuple[UsedVariant, ...]] = field(default_factory=dict[int, tuple[UsedVariant, ...]])
    """Revision → what its inputs run with then, of revisions after the first."""
    share: bool = True
    """A sweep reuses what no edit can change."""
    rows: dict[str, dict[str, dict[int, Array]]] = field(default_factory=dict[str, dict[str, dict[int, Array]]])
    """Input → site → position → row, filled by source runs."""

    def plan_at(self, revision: int) -> Plan:
        """The whole plan of a revision."""
        return self.plans.get(revision, self.plan)

    def since(self, hook: int, revision: int) -> int:
        """The revision from which a hook has been what it is at `revision`; 0 for the request's own."""
        if hook < len(self.own_plan.hooks) or not revision:
            return 0
        found, wanted = revision, self.plan_at(revision).hooks[hook]
        for earlier in sorted((r for r in self.plans if r < revision), reverse=True):
            hooks = self.plans[earlier].hooks
            if hook >= len(hooks) or hooks[hook] != wanted:
                break
            found = earlier
        return found

    def hooks(self, revision: int) -> tuple[ResolvedHook, ...]:
        """The hooks of the revision that the sequences have now, as the caller is told."""
        return resolved(self.plan_at(revision), self.inputs)

    def variants(self, revision: int) -> tuple[UsedVariant, ...]:
        """What the inputs run with at a revision."""
        return self.used.get(revision, self.started.variants)

    def revised(self, session: Session) -> list[tuple[Sequence, BoundPlan]]:
        """Every sequence that has not ended, with its plan under a later revision. Raises when one cannot follow."""
        assert self.rebind is not None
        found: list[tuple[Sequence, BoundPlan]] = []
        for item in (item for item in self.inputs if not item.ended):
            for sequence, plan in self.rebind(item, session):
                give_known_rows(plan, self.rows)
                if sequence.begun:
                    succeed(sequence.plan, plan)
                found.append((sequence, plan))
        return found


def give_known_rows(plan: BoundPlan, rows: dict[str, dict[str, dict[int, Array]]]) -> None:
    """Fill what a plan reads of inputs that have run."""
    for bound in plan.hooks:
        if bound.needs is not None and (found := rows.get(bound.needs[0])) is not None:
            give_rows(bound, [found[str(site)] for site in bound.sites])


def resolved(plan: Plan, inputs: list[PreparedInput]) -> tuple[ResolvedHook, ...]:
    """A plan's hooks as the caller is told."""
    return tuple(
        ResolvedHook(
            index,
            hook.id or f"hook{index}",
            tuple(str(site) for site in bound.sites),
            {name: sae.hash for name, sae in bound.saes.items()},
        )
        for index, hook in enumerate(plan.hooks)
        if (bound := _bound(inputs, index)) is not None
    )


def _bound(inputs: list[PreparedInput], index: int) -> BoundHook | None:
    for prepared in inputs:
        if prepared.sequence is not None:
            for bound in prepared.sequence.plan.hooks:
                if bound.index == index:
                    return bound
    return None
