"""Requests for gradients and sweeps check themselves: every input has the targets that it needs, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.gradients import GradientsRequest, IntegratedPath, targets_of
from probewire.protos.metrics import Logit, LogProb, Measured, Target
from probewire.protos.model import Input
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.sweeps import MAX_PLANS, SweepRequest
from probewire.protos.tensors import Tensor

A, B, S = Input("x", name="a"), Input("y", name="b"), Input("z", name="s", source_only=True)
ALL, OF_A, OF_B = Target(Logit(5)), Target(Logit(6), ("a",)), Target(LogProb(7), ("b",))
EDIT, READ = Hook("embed", edit=Scale(0.5)), Hook("embed", capture=Capture())


def test_which_targets_an_input_has() -> None:
    targets = (ALL, OF_A, OF_B)
    assert targets_of(A, targets) == (ALL, OF_A)
    assert targets_of(B, targets) == (ALL, OF_B)
    assert targets_of(S, targets) == ()


def test_every_input_of_gradients_has_one_target() -> None:
    for targets in ((ALL,), (OF_A, OF_B), (Target(Logit(5), ("b", "a")),)):
        assert GradientsRequest((A, B, S), targets).targets == targets
    assert GradientsRequest(cast("Any", [A, S]), cast("Any", [OF_A])).inputs == (A, S)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: GradientsRequest((A, B), (OF_A,)), "input 'b' has 0 targets; gradients need exactly one"),
        (lambda: GradientsRequest((A, B), (ALL, OF_A)), "input 'a' has 2 targets.*name the prompt several times"),
        (lambda: GradientsRequest((A,), ()), "1 to 256 targets, got 0"),
        (lambda: GradientsRequest((A,), (OF_A,) * 257), "1 to 256 targets, got 257"),
        (lambda: GradientsRequest((A,), (OF_A, OF_B)), r"target 1: no inputs \['b'\] to measure; .* \['a'\]"),
        (lambda: GradientsRequest((A, S), (OF_A, Target(Logit(1), ("s",)))), r"no inputs \['s'\]"),
        (lambda: GradientsRequest((S,), (ALL,)), "every input is source_only, so nothing would be measured"),
        (lambda: GradientsRequest((), (ALL,)), "1 to 64 inputs"),
        (lambda: GradientsRequest((A, A), (ALL,)), "distinct names"),
        (lambda: GradientsRequest((A,), (ALL,), rules=("ln", "LN")), r"unknown rules \['LN'\]; allowed: ln, identity"),
        (lambda: SweepRequest((A, B), (OF_A,), (Plan(),)), "input 'b' has no target; mark it source_only"),
        (lambda: SweepRequest((A,), (ALL,), ()), "1 to 16,384 plans, got 0"),
        (lambda: SweepRequest((A,), (ALL,), (Plan(),) * (MAX_PLANS + 1)), "1 to 16,384 plans, got 16385"),
        (lambda: SweepRequest((A,), (ALL,), (Plan(), Plan((EDIT, READ)))), "plan 1 captures at embed"),
        (lambda: SweepRequest((A,), (ALL,), (Plan(),), base=Plan((READ,))), "base captures at embed"),
        (lambda: SweepRequest((S,), (ALL,), (Plan(),)), "every input is source_only"),
        (lambda: IntegratedPath("b", 0), "path.steps must be in 1 … 64, got 0"),
        (lambda: IntegratedPath("b", 65), "1 … 64, got 65"),
        (lambda: IntegratedPath("b", cast("Any", 2.0)), "1 … 64, got 2.0"),
        (lambda: IntegratedPath("b", site="resid_post.*"), "stands for several sites"),
        (lambda: IntegratedPath("b", site="soul.1"), "unknown site 'soul.1'"),
        (lambda: Capture(gradient=True, before=True), "capture.gradient is of the value after all edits"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        make()


def test_a_sweep_takes_any_number_of_targets() -> None:
    request = SweepRequest((A, B, S), (ALL, OF_A, OF_A, OF_B), (Plan((EDIT,)), Plan()), base=Plan((EDIT,)))
    assert [len(targets_of(item, request.targets)) for item in request.inputs] == [3, 2, 0]
    assert len(SweepRequest((A,), (ALL,), (Plan(),) * MAX_PLANS).plans) == MAX_PLANS


def test_sites_are_canonical() -> None:
    assert IntegratedPath("b", site="blocks.3.hook_resid_post").site == "resid_post.3"


def test_what_was_measured_keeps_its_bits() -> None:
    values = np.array([[0.1], [1 / 3]])
    assert Measured("a", Tensor.of(values)).values.numpy().tolist() == values.tolist()
