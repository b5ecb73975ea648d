"""A request made ready: its hooks as the caller is told, its revisions, and rows that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.bound import BoundHook, BoundPlan
from probewire.backends.hooks.sequence import Sequence
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input, Started
from probewire.protos.sessions import Session
from probewire.protos.sites import Site
from probewire.protos.spec import Capture, Hook, Mean, Plan
from probewire.server.worker.input.prepared import Prepared, PreparedInput, give_known_rows, resolved

A, B, C = (Hook(f"mlp_out.{layer}", edit=Scale(0.5)) for layer in range(3))
READ = Hook("resid_post.*", capture=Capture(), id="mine", inputs=("y",))


def bound_plan(*hooks: BoundHook) -> BoundPlan:
    return BoundPlan("generate", 2, 5, hooks, {}, {}, {})


def item(name: str, *hooks: BoundHook, source_only: bool = False) -> PreparedInput:
    sequence = None if source_only else Sequence(f"r.{name}", [1, 2], 2, bound_plan(*hooks))
    return PreparedInput(Input("x", name=name, source_only=source_only), [1, 2], not source_only, sequence)


def started(revision: int = 0) -> Started:
    return Started("r", "m", "h", "torch", "cpu", "float32", "eager", {}, (), (), revision)


def prepared(plan: Plan, *inputs: PreparedInput, **more: Any) -> Prepared:
    return Prepared("r", "generate", plan, list(inputs), started(), **more)


# ---- hooks as they are told ------------------------------------------------------------------------------------------


def test_a_hook_is_told_with_the_sites_that_it_was_bound_to() -> None:
    first = BoundHook(0, A, (Site.parse("mlp_out.0"),))
    second = BoundHook(1, READ, (Site.parse("resid_post.0"), Site.parse("resid_post.1")))
    told = resolved(Plan((A, READ)), [item("x", first), item("y", first, second)])
    assert [(hook.hook, hook.id, hook.sites) for hook in told] == [
        (0, "hook0", ("mlp_out.0",)),
        (1, "mine", ("resid_post.0", "resid_post.1")),
    ]


def test_a_hook_that_acts_on_no_input_of_the_callers_is_not_told() -> None:
    first = BoundHook(0, A, (Site.parse("mlp_out.0"),))
    told = resolved(Plan((A, READ)), [item("x", first), item("y", source_only=True)])
    assert [hook.hook for hook in told] == [0]
    assert resolved(Plan((A,)), []) == ()


# ---- revisions -------------------------------------------------------------------------------------------------------


def test_a_plan_is_that_of_its_revision_or_the_first() -> None:
    made = prepared(Plan((A,)), plans={3: Plan((B,))})
    assert made.plan_at(3) == Plan((B,))
    assert made.plan_at(0) == made.plan_at(9) == Plan((A,))


@pytest.mark.parametrize(
    ("hook", "revision", "since"),
    [
        (0, 5, 0),  # the request's own
        (1, 1, 1),
        (1, 2, 1),
        (1, 4, 1),
        (1, 5, 5),
        (2, 4, 4),
        (2, 5, 4),
        (1, 0, 0),
    ],
)
def test_a_hook_is_what_it_is_since_the_first_revision_in_a_row_that_had_it(
    hook: int, revision: int, since: int
) -> None:
    plans = {1: Plan((A, B)), 2: Plan((A, B)), 4: Plan((A, B, C)), 5: Plan((A, A, C))}
    made = prepared(plans[1], own_plan=Plan((A,)), plans=plans)
    assert made.since(hook, revision) == since


def test_a_hook_that_was_away_is_another_when_it_comes_back() -> None:
    plans = {1: Plan((B,)), 2: Plan((C,)), 3: Plan((B,))}
    assert prepared(plans[1], plans=plans).since(0, 3) == 3


def test_the_hooks_of_a_revision_are_those_of_its_plan() -> None:
    first = BoundHook(0, B, (Site.parse("mlp_out.1"),))
    made = prepared(Plan((A,)), item("x", first), plans={2: Plan((B,))})
    assert [hook.sites for hook in made.hooks(2)] == [("mlp_out.1",)]


SESSION = Session("ses-1", "", "m", Plan((B,)), 2)


def test_an_input_that_has_ended_follows_no_more() -> None:
    x, y = item("x"), item("y")
    x.ended = True
    asked: list[str] = []

    def rebind(given: PreparedInput, session: Session) -> list[tuple[Sequence, BoundPlan]]:
        assert session is SESSION
        asked.append(given.item.name)
        assert given.sequence is not None
        return [(given.sequence, bound_plan())]

    made = prepared(Plan(), x, y, rebind=rebind)
    assert [sequence.id for sequence, _ in made.revised(SESSION)] == ["r.y"]
    assert asked == ["y"]


def test_a_plan_that_a_sequence_cannot_follow_is_refused_and_nothing_changes() -> None:
    x = item("x")
    before = x.sequence.plan if x.sequence else None

    def rebind(given: PreparedInput, session: Session) -> list[tuple[Sequence, BoundPlan]]:
        raise InvalidArgument("no such site")

    with pytest.raises(InvalidArgument, match="no such site"):
        prepared(Plan(), x, rebind=rebind).revised(SESSION)
    assert x.sequence is not None
    assert x.sequence.plan is before


# ---- rows ------------------------------------------------------------------------------------------------------------


def reading(source: str, *positions: int) -> BoundHook:
    hook = Hook("resid_post.*", edit=Replace(FromInput(source)))
    bound = BoundHook(0, hook, (Site.parse("resid_post.0"), Site.parse("resid_post.1")))
    bound.needs = (source, positions)
    return bound


def test_rows_of_an_input_that_has_run_are_given_in_the_order_in_which_they_are_needed() -> None:
    rows = {
        site: {p: np.full(2, 10 * n + p) for p in range(4)} for n, site in enumerate(("resid_post.0", "resid_post.1"))
    }
    bound = reading("clean", 3, 1)
    give_known_rows(bound_plan(bound), {"clean": rows})
    assert bound.needs is None
    assert bound.per_site
    assert bound.source is not None
    assert bound.source.tolist() == [[[3, 3], [1, 1]], [[13, 13], [11, 11]]], "[site, row, …]"


def test_what_has_not_run_is_still_needed() -> None:
    bound, plain = reading("clean", 0), BoundHook(1, Hook("z.0", capture=Capture(reduce=Mean())), (Site.parse("z.0"),))
    give_known_rows(bound_plan(bound, plain), {"other": {}})
    assert bound.needs == ("clean", (0,))
    assert bound.source is None
