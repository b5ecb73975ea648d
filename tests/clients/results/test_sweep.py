"""What a sweep's array is: metrics have an axis, and none is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService

from probewire.clients import (
    Client,
    InvalidArgument,
    Logit,
    LogitDifference,
    LogProb,
    Run,
    Scale,
    Sweep,
    Target,
    hook,
    load,
)
from probewire.clients.results.sweep import metric_labels

HALVE = hook("resid_post.1", Scale(0.5))
TWO = [Logit(5), LogProb(6)]


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def sweep(fake: Client, inputs: Any = "a", target: Any = TWO, **more: Any) -> Sweep:
    return fake.sweep(inputs, target, [[HALVE]] * 6, progress=False, **more)


def test_several_metrics_have_an_axis(fake: Client) -> None:
    """Each is 97 + 10·plan + its place."""
    found = sweep(fake, axes={"layer": range(2), "position": range(3)}).array()
    assert found.axes == {"metric": ("Logit(5)", "LogProb(6)"), "layer": (0, 1), "position": (0, 1, 2)}
    plans = 97 + 10 * np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(found.values, np.stack([plans, plans + 1]))
    assert found.sel(metric="LogProb(6)", layer=1, position=0).item() == 97 + 30 + 1


def test_several_inputs_and_metrics(fake: Client) -> None:
    swept = sweep(fake, {"x": "ab", "y": "c"})
    found = swept.array()
    assert (found.dims, found.shape) == (("input", "metric", "plan"), (2, 2, 6))
    np.testing.assert_array_equal(found.sel(input="y", metric="LogProb(6)").values, 100 + 10 * np.arange(6))
    assert swept.array("y").dims == ("metric", "plan")


def test_one_metric_is_chosen_by_place_label_or_itself(fake: Client) -> None:
    swept = sweep(fake, {"x": "ab", "y": "c"})
    for target in (1, np.int64(1), "LogProb(6)", LogProb(6)):
        assert swept.array("y", target).axes == {"plan": tuple(range(6))}
        assert swept.array(target=target).sel(input="y", plan=2).item() == 99 + 20 + 1
    for target in (2, -1, "LogProb(7)", Logit(6)):
        with pytest.raises(InvalidArgument, match=r"no target .*measured by 2: Logit\(5\), LogProb\(6\)"):
            swept.array("y", target)


def test_one_metric_has_no_axis(fake: Client) -> None:
    assert sweep(fake, target=Logit(5)).array().dims == ("plan",)
    each = sweep(fake, {"x": "ab", "y": "c"}, {"x": Logit(5), "y": Logit(6)})  # each by its own
    assert each.array().dims == ("input", "plan")


def test_inputs_that_were_measured_by_different_metrics_are_no_one_array(fake: Client) -> None:
    uneven = [Target(Logit(5)), Target(LogProb(6), ("x",))]
    swept = sweep(fake, {"x": "ab", "y": "c"}, uneven)
    with pytest.raises(
        InvalidArgument, match=r"different metrics \('x' by Logit\(5\), LogProb\(6\); 'y' by Logit\(5\)\)"
    ):
        swept.array()
    assert swept.array(target=0).dims == ("input", "plan")
    assert swept.array("x").dims == ("metric", "plan")


def test_an_axis_of_the_sweeps_own_is_not_overwritten(fake: Client) -> None:
    swept = sweep(fake, axes={"metric": range(6)})
    with pytest.raises(InvalidArgument, match="the sweep has an axis 'metric' of its own"):
        swept.array()
    assert swept.array(target=1).dims == ("metric",)
    with pytest.raises(InvalidArgument, match="the sweep has an axis 'input' of its own"):
        sweep(fake, {"x": "ab", "y": "c"}, axes={"input": range(6)}).array(target=0)


def test_metrics_are_labelled_as_they_are_written() -> None:
    assert metric_labels([Logit(5), Logit(5, -2), Logit(5), LogitDifference((1, 2), (3,)), Logit(5, centred=True)]) == (
        "Logit(5)",
        "Logit(5, -2)",
        "Logit(5) #2",
        "LogitDifference((1, 2), (3,))",
        "Logit(5, centred=True)",
    )


def test_saved_and_loaded(fake: Client, tmp_path: Path) -> None:
    axes: dict[str, Any] = {"layer": np.array([3, 7]), "what": ["a", ("b", 2), None]}
    swept = sweep(fake, {"x": "ab", "y": "c"}, axes=axes, hooks=hook("embed", Scale(2)))
    again = load(swept.save(tmp_path / "sweep.safetensors"))
    assert isinstance(again, Sweep)
    assert (again.asked, again.started, again.tokens) == (swept.asked, swept.started, swept.tokens)
    assert again.axes == {"layer": (3, 7), "what": ("a", ("b", 2), None)}
    np.testing.assert_array_equal(again.array().values, swept.array().values)
    assert again.array().sel(what=[("b", 2)], metric="Logit(5)").shape == (2, 2, 1)
    assert isinstance(Sweep.load(tmp_path / "sweep.safetensors"), Sweep)
    with pytest.raises(InvalidArgument, match="holds a Sweep, not a Run"):
        Run.load(tmp_path / "sweep.safetensors")
    run = fake.run("a", capture="embed").save(tmp_path / "run.safetensors")
    with pytest.raises(InvalidArgument, match="holds a Run, not a Sweep"):
        Sweep.load(run)
    odd = sweep(fake, axes={"site": [object() for _ in range(6)]})
    with pytest.raises(InvalidArgument, match="labels of axis 'site' cannot be written: they are object"):
        odd.save(tmp_path / "odd")
