"""Sweeps made ready: every plan checked and bound, in the order in which they share best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.saes import UserAssets
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.errors import InvalidArgument, ProbewireError, ResourceExhausted
from probewire.protos.metrics import Coordinate, Logit, Target
from probewire.protos.model import Input
from probewire.protos.spec import Hook, Plan, Where
from probewire.protos.sweeps import SweepRequest
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.input import sweep as module
from probewire.server.worker.input.binding import Binding
from probewire.server.worker.input.sweep import prepare_sweep
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

TARGETS = (Target(Logit(5)),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu"), folder)
    yield made
    made.close()


@pytest.fixture
def binding(model: LocalModel) -> Binding:
    return Binding("req-1", model.backend, model.tokenizer, RequestLimits(), UserAssets())


def scaled(site: str = "mlp_out.1", *positions: int, factor: float = 0.5) -> Plan:
    return Plan((Hook(site, edit=Scale(factor), where=Where(positions=positions or None)),))


def asked(*plans: Plan, inputs: tuple[Input, ...] = (Input("abc", name="x"),), **more: Any) -> SweepRequest:
    return SweepRequest(inputs, more.pop("targets", TARGETS), plans, **more)


def refused(binding: Binding, request: SweepRequest, kind: type[ProbewireError] = InvalidArgument) -> str:
    with pytest.raises(kind) as caught:
        prepare_sweep(request, binding)
    return caught.value.message


def test_each_plan_is_bound_behind_the_base(binding: Binding) -> None:
    base = scaled("mlp_out.0")
    [item] = prepare_sweep(asked(scaled("mlp_out.1"), scaled("mlp_out.2"), base=base), binding).inputs
    assert item.sequence is not None
    assert [str(bound.sites[0]) for bound in item.sequence.plan.hooks] == ["mlp_out.0"]
    assert [[str(bound.sites[0]) for bound in plan.hooks] for plan in item.variants] == [
        ["mlp_out.0", "mlp_out.1"],
        ["mlp_out.0", "mlp_out.2"],
    ]
    assert (item.sequence.plan.mode, len(item.sequence.metrics)) == ("sweep", 1)


def test_plans_that_begin_at_the_same_position_stand_together(binding: Binding) -> None:
    plans = [scaled("mlp_out.1", 3), scaled("mlp_out.1", 1), scaled("mlp_out.1", 3), scaled("mlp_out.1", 0)]
    [item] = prepare_sweep(asked(*plans), binding).inputs
    assert sorted(index for _, index in item.order) == [0, 1, 2, 3]
    assert sorted(item.order, key=lambda pair: pair[1]) == [(1, 0), (3, 1), (1, 2), (4, 3)], "rows from there on"
    rows = [rows for rows, _ in item.order]
    assert rows in (sorted(rows), sorted(rows, reverse=True))


def test_without_sharing_each_plan_is_a_whole_forward_in_its_own_place(binding: Binding) -> None:
    prepared = prepare_sweep(asked(scaled("mlp_out.1", 3), scaled("mlp_out.1", 0), share=False), binding)
    assert prepared.inputs[0].order == [(4, 0), (4, 1)]
    assert not prepared.share


def test_a_source_is_not_measured(binding: Binding) -> None:
    inputs = (Input("abd", name="clean", source_only=True), Input("abc", name="x"))
    patch = Plan((Hook("resid_post.0", edit=Replace(FromInput("clean")), inputs=("x",)),))
    clean, x = prepare_sweep(asked(patch, scaled(), inputs=inputs), binding).inputs
    assert (clean.sequence, clean.variants) == (None, [])
    assert clean.source is not None
    assert [len(x.variants), x.level] == [2, 1]


def test_a_sweep_has_so_many_forwards(binding: Binding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FORWARDS", 6)
    inputs = (Input("a", name="x"), Input("b", name="y"), Input("c", name="z", source_only=True))
    prepare_sweep(asked(*[scaled()] * 3, inputs=inputs), binding)
    message = refused(binding, asked(*[scaled()] * 4, inputs=inputs), ResourceExhausted)
    assert message == "4 plans on 2 inputs are 8 forwards; one sweep takes 6: send it in parts"


@pytest.mark.parametrize(
    ("plans", "more", "told"),
    [
        ((scaled(), scaled("mlp_out.9")), {}, "plan 1: hook 0 (mlp_out.9)"),
        ((scaled(),), {"base": scaled("mlp_out.9")}, "base: hook 0 (mlp_out.9)"),
        ((scaled("mlp_out.1", 9),), {}, "plan 0: hook 0 (mlp_out.1)"),
        ((Plan((Hook("z.1", edit=Scale(2.0), inputs=("q",)),)),), {}, "hook 0 (z.1): no inputs ['q']"),
        (
            (scaled(),),
            {"targets": (Target(Coordinate("resid_post.1", 0, unit=1)),)},
            "a sweep measures logits; for a coordinate of a site use a run or gradients",
        ),
        ((scaled(),), {"targets": (Target(Logit(5, position=9)),)}, "target 0 of input 'x'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_the_plan_that_asks_for_it(
    binding: Binding, plans: tuple[Plan, ...], more: dict[str, Any], told: str
) -> None:
    assert refused(binding, asked(*plans, **more)).startswith(told)
