"""The picture of a sweep shows its numbers, and refuses what makes no line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.seeds.sweep_plot import sweep_plot
from probewire.analysis.sae.seeds.sweeps import Sweep, conditions, run_sweep
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.planted_data import noisy


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    train = noisy(lambda k: 0.2 * k, lambda k: 0.1 * k)
    over = conditions([1, 2, 4], [12, 24], epochs=3)
    return run_sweep(train, over, range(4), folder=tmp_path_factory.mktemp("sweep"), identity={})


def curve(axes: Any, number: int) -> Any:
    return axes.containers[number].lines[0]


def test_the_numbers_of_the_sweep_are_drawn(sweep: Sweep, tmp_path: Path) -> None:
    figure: Any = sweep_plot(sweep, floor=0.2, what="Stability", how="planted", path=tmp_path / "sweep.png")
    left, right = figure.axes
    for number, d_sae in enumerate((12, 24)):
        rows = [sweep.row(k=k, d_sae=d_sae) for k in (1, 2, 4)]
        assert curve(left, number).get_xdata().tolist() == [1, 2, 4]
        np.testing.assert_allclose(curve(left, number).get_ydata(), [row.stability.mean for row in rows])
        np.testing.assert_allclose(curve(right, number).get_ydata(), [row.explained_variance for row in rows])
        ends = np.array([[p[:, 1] for p in left.containers[number].lines[2][0].get_segments()]])[0]
        np.testing.assert_allclose(ends, [(r.comparison.trained.low, r.comparison.trained.high) for r in rows])
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "2", "4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "d_sae 12",
        "d_sae 24",
        "random dictionaries",
    ]
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_along_either(sweep: Sweep) -> None:
    figure: Any = sweep_plot(sweep, along="d_sae")
    assert figure.axes[0].get_xlabel() == "d_sae"
    assert len(figure.axes[0].containers) == 3
    assert len(figure.axes[0].collections) == 3 + 1, "three lines of bars, and random dictionaries once"
    assert figure.axes[0].get_ylabel() == "PWMCC, 95% by bootstrap over seeds"


def test_what_makes_no_line_is_refused(sweep: Sweep) -> None:
    with pytest.raises(InvalidArgument, match="needs two conditions or more"):
        sweep_plot(Sweep(sweep.rows[:1]))
    with pytest.raises(InvalidArgument, match='along is "k" or "d_sae"'):
        sweep_plot(sweep, along="epochs")
