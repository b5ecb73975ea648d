"""Where the edits of a sweep's plans begin, and so what each of them shares."""

from __future__ import annotations

from typing import Any

import pytest

from probewire.backends.hooks.bound import BoundPlan
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.points import PROBE_LENGTHS, Points, Seen
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.hooks.sweeps import NOWHERE, WHOLE, SharedPrefix, Start, grouped, hooks_in, start_of
from probewire.backends.model.sites import Dims, site_infos
from probewire.clients import hook
from probewire.protos.edits import Scale
from probewire.protos.model import ModelInfo
from probewire.protos.spec import AllOf, AnyOf, Condition, Hook, Plan
from tests.backends.model.anatomy.rows import ROWS

N_LAYERS = 4
TOKENS = [7, 99, 12, 200, 31, 64]
INFO = ModelInfo(
    "tiny", "llama", "llama", "torch", "cpu", "float32", "sdpa", "", N_LAYERS, 8, 2, 2, 4, 16, 300,
    sites=site_infos(ROWS["llama", "torch"], Dims(N_LAYERS, 8, 2, 2, 4, 16, 300)),
)  # fmt: skip
RAW = "model.layers.2.mlp"


class Model:
    """As much of a backend as a plan is bound to."""

    info = INFO
    points = Points(
        ROWS["llama", "torch"],
        "torch",
        2,
        {(RAW, side): Seen([1, 1], [(2, n, 8) for n in PROBE_LENGTHS]) for side in ("input", "output")},
    )


NOTHING = Start(NOWHERE, NOWHERE)


def bound(*hooks: Hook, prompt: int = 6) -> BoundPlan:
    return bind(Plan(hooks), Model(), mode="sweep", input_name="x", tokens=TOKENS, prompt_length=prompt, n_rows=6)


def edit(site: str, position: int | None = 2, **where: Any) -> Hook:
    return hook(site, Scale(0.5), **({} if position is None else {"positions": [position]}), **where)


BELOW = Condition(0.0, site="resid_pre.1", unit=3)
LATCHED = Condition(0.0, unit=3, latch="last")


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ([], NOTHING),
        ([edit("mlp_out.2")], Start(2, 2)),
        ([edit("mlp_out.2"), edit("z.1", 4)], Start(2, 1)),
        ([edit("mlp_out.2", 4), edit("z.3", 1)], Start(1, 2)),
        ([edit("resid_post.*", None)], Start(0, 0)),
        ([edit("resid_post.1:3", -1)], Start(5, 1)),
        ([edit("embed")], Start(2, 0)),
        ([edit("final_norm")], Start(2, N_LAYERS - 1)),
        ([edit("logits", 5)], Start(5, N_LAYERS - 1)),
        ([hook("z.1", Scale(0.5), spans=[(3, None)])], Start(3, 1)),
        ([hook("z.1", Scale(0.5), token_ids=[200])], Start(3, 1)),
        ([hook("z.1", Scale(0.5), token_ids=[1])], NOTHING),
        ([edit("mlp_out.3", when=BELOW)], Start(2, 1)),
        ([edit("mlp_out.3"), edit("z.3", 4, when=BELOW)], Start(2, 1)),
        ([hook("mlp_out.3", Scale(0.5), when=LATCHED)], Start(0, 0)),
        ([edit("mlp_out.3", when=AnyOf((Condition(0.0, unit=3), BELOW)))], Start(2, 1)),
        ([hook("mlp_out.3", Scale(0.5), when=AllOf((BELOW, LATCHED)))], Start(0, 0)),
        ([edit("module:model.layers.2.mlp:output")], WHOLE),
        ([edit("mlp_out.3"), edit("module:model.layers.2.mlp:output", 5)], WHOLE),
    ],
)
def test_where_a_plan_begins(hooks: list[Hook], expected: Start) -> None:
    latched = bool(hooks) and (when := hooks[0].where.when) is not None and when.latched
    assert start_of(bound(*hooks, prompt=4 if latched else 6), frozenset(), TOKENS, N_LAYERS) == expected


def test_hooks_in_common_begin_nothing() -> None:
    base = [edit("embed", 0), edit("resid_post.0", None)]
    common = hooks_in(bound(*base))
    assert common == {0, 1}
    assert start_of(bound(*base), common, TOKENS, N_LAYERS) == NOTHING
    assert start_of(bound(*base, edit("z.3", 4)), common, TOKENS, N_LAYERS) == Start(4, 3)
    conditional = [edit("resid_post.2", None, when=BELOW)]
    assert start_of(bound(*conditional, edit("z.3", 4)), frozenset({0}), TOKENS, N_LAYERS) == Start(4, 1)


def test_variants_that_begin_together_are_computed_together() -> None:
    plans = [[edit("z.3", 4)], [], [edit("z.1", 4)], [edit("z.2", 0)], [edit("z.2", 4)]]
    variants = [Sequence(f"v{i}", TOKENS, 6, bound(*hooks)) for i, hooks in enumerate(plans)]
    assert grouped(variants, SharedPrefix(6, frozenset()), N_LAYERS) == {0: [(2, 3)], 4: [(1, 2), (2, 4), (3, 0)]}
