"""The pictures of forgetting runs: what is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.unlearning.plots import clamp_scatter, forgetting_bars
from probewire.clients import InvalidArgument
from tests.analysis.sae.unlearning.test_results import forgetting_of, result


def test_a_point_a_configuration(tmp_path: Path) -> None:
    run = forgetting_of(result(9, 100), result(3, 40), result(None, 0))
    figure: Any = clamp_scatter(run, path=tmp_path / "clamps.png")
    assert (tmp_path / "clamps.png").stat().st_size > 5000
    (axes,) = figure.axes
    points = {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0])): line.get_markerfacecolor()
        for line in axes.lines
        if line.get_marker() not in ("", "None") and len(line.get_xdata()) == 1
    }
    assert set(points) == {(1.0, 9 / 20), (0.7, 3 / 20)}
    assert points[0.7, 3 / 20] == "white", "hollow where it fails the gate"
    assert points[1.0, 9 / 20] != "white"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["gate 0.99", "retain threshold 0.01", "10 latents", "hollow: fails the gate"]
    controls = ((result(20, 100), result(None, 0), result(None, 0)),)
    figure = clamp_scatter(forgetting_of(result(9, 100), result(None, 0), result(None, 0), controls=controls))
    labels = {line.get_label(): line for line in figure.axes[0].lines}
    assert "hollow: fails the gate" not in labels
    assert (*labels["random latents"].get_xdata(), *labels["random latents"].get_ydata()) == (1.0, 1.0)
    with pytest.raises(InvalidArgument, match="no latent passes the threshold"):
        clamp_scatter(forgetting_of(result(None, 0)))


def test_a_bar_a_run_and_the_reason_of_a_zero(tmp_path: Path) -> None:
    runs = {"good": forgetting_of(result(9, 100)), "bad": forgetting_of(result(20, 100), fired=0, trained=False)}
    figure: Any = forgetting_bars(runs, path=tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5000
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.55])
    said = [text.get_text() for text in axes.texts]
    assert "0.550" in said
    assert " 0: untrained SAE, none fire on the questions" in said
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "bad"]
    with pytest.raises(InvalidArgument, match="at least one"):
        forgetting_bars({})


def test_random_latents_are_markers_beneath_the_bar() -> None:
    drawn = ((result(20, 100),), (result(14, 100),))
    runs = {
        "good": forgetting_of(result(9, 100), controls=drawn),
        "bad": forgetting_of(result(20, 100), controls=((result(None, 0),),)),
    }
    figure: Any = forgetting_bars(runs)
    (axes,) = figure.axes
    (markers,) = [line for line in axes.lines if line.get_label() == "random latents"]
    assert list(markers.get_xdata()) == pytest.approx([0, 0.3]), "what was not run is not drawn"
    assert all(0.25 < y < 0.5 for y in markers.get_ydata())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["random latents"]
    assert forgetting_bars({"alone": forgetting_of(result(9, 100))}).legends == []
