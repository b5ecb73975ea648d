"""What a user may write for a target."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from probewire.clients import (
    Coordinate,
    InvalidArgument,
    Kl,
    Logit,
    LogitDifference,
    LogProb,
    Target,
    Tensor,
    TopLogits,
)
from probewire.clients.requests.targets import to_targets
from probewire.protos.wire.codec import to_json

METRICS = [
    Logit(5),
    LogitDifference((1,), (2, 3)),
    LogProb(4, -2),
    TopLogits(),
    Kl("other"),
    Coordinate("z.1", 0, 3, 1),
]


@pytest.mark.parametrize("metric", METRICS)
def test_one_metric_is_of_every_input(metric: Any) -> None:
    assert to_targets(metric) == (Target(metric),)
    assert to_targets([metric]) == to_targets((Target(metric),)) == to_targets(Target(metric)) == (Target(metric),)
    assert to_targets({"a": metric}) == (Target(metric, ("a",)),)


def test_several() -> None:
    assert to_targets({"a": Logit(1), "b": LogProb(2)}) == (Target(Logit(1), ("a",)), Target(LogProb(2), ("b",)))
    mixed = to_targets([Logit(1), Target(LogProb(2), ("a", "b")), TopLogits(3)])
    assert mixed == (Target(Logit(1)), Target(LogProb(2), ("a", "b")), Target(TopLogits(3)))
    assert to_targets([]) == ()


@pytest.mark.parametrize("value", [5, " Mary", None, ["x"], {"a": 5}, {"a": [Logit(1)]}, [Logit(1), 5], Logit])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="Logit"):
        to_targets(value)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Logit(-1), "logit.token must be a token id of 0 or more, got -1"),
        (lambda: Logit(True), "got True"),
        (lambda: LogProb(1.5), "log_prob.token must be a token id"),
        (lambda: Logit(" Mary"), "got ' Mary'"),
        (lambda: LogitDifference((), (1,)), "logit_difference.correct is empty"),
        (lambda: LogitDifference((1,), (2, 2)), "same index twice"),
        (lambda: TopLogits(0), "1 … 100, got 0"),
        (lambda: TopLogits(101), "1 … 100, got 101"),
        (lambda: Coordinate("mlp_act.1", 0), "exactly one of unit and direction"),
        (lambda: Coordinate("mlp_act.1", 0, 3, direction=Tensor.of([1.0])), "exactly one of unit and direction"),
        (lambda: Coordinate("mlp_act.*", 0, 3), "stands for several sites"),
        (lambda: Coordinate("mlp_act.1", 0, -3), "coordinate.unit must be an integer of 0 or more"),
        (lambda: Coordinate("mlp_act.1", 0, direction=Tensor.of([np.nan])), "NaN"),
        (lambda: Coordinate("mlp_act.1", 0, direction=Tensor.of([[1.0]])), "it needs 1 axes"),
        (lambda: Logit(1, 1.5), r"logit\.position must be an integer .*, got 1\.5"),
        (lambda: LogProb(1, None), "log_prob.position must be an integer"),
        (lambda: LogitDifference((1,), (2,), "x"), "logit_difference.position must be an integer"),
        (lambda: TopLogits(3, True), "top_logits.position must be an integer"),
        (lambda: TopLogits("all"), "1 … 100, got 'all'"),
        (lambda: Kl("a", [1]), "kl.position must be an integer"),
        (lambda: Kl("a", 1, 0.5), "kl.baseline_position must be an integer"),
        (lambda: Coordinate("mlp_act.1", 0.5, 3), "coordinate.position must be an integer"),
        (lambda: Target(Logit(1), ()), "target.inputs is empty"),
    ],
)
def test_metrics_check_themselves(make: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    one = np.int64(1)
    for made, plain in (
        (Logit(one, one), Logit(1, 1)),
        (LogProb(one), LogProb(1)),
        (LogitDifference((one,), (np.int32(2),), one), LogitDifference((1,), (2,), 1)),
        (TopLogits(one), TopLogits(1)),
        (Kl("a", one, one), Kl("a", 1, 1)),
        (Coordinate("z.1", one, one, one), Coordinate("z.1", 1, 1, 1)),
    ):
        assert made == plain
        assert json.dumps(to_json(made)) == json.dumps(to_json(plain))
