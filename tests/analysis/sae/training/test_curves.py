"""Training curves: kept as given, also through JSON, and drawn as they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.training.curves import Curves, draw_curves
from probewire.clients import InvalidArgument


def curves(points: int = 12, scale: float = 1.0) -> Curves:
    found = Curves()
    for step in range(1, points + 1):
        found.add(
            {
                "step": step,
                "samples": 32 * step,
                "loss": scale / step,
                "l0": 4.0,
                "explained_variance": 1 - 1 / step,
                "dead": None if step < 4 else 0.25,
                "lr": 1e-3,
                "loss/mse_loss": 0.75 * scale / step,
                "loss/auxiliary_reconstruction_loss": 0.0 if step < 5 else 0.25 * scale / step,
            }
        )
    return found


def test_points_are_kept_and_what_is_not_known_is_nan() -> None:
    found = curves()
    assert len(found) == 12
    assert found["loss"].tolist() == [1 / step for step in range(1, 13)]
    assert np.isnan(found["dead"][:3]).all()
    assert (found["dead"][3:] == 0.25).all()
    assert [*found.losses] == ["mse_loss", "auxiliary_reconstruction_loss"]
    assert found.last["explained_variance"] == 1 - 1 / 12


def test_they_survive_json_without_nan_in_the_file(tmp_path: Path) -> None:
    found = curves()
    found.add({**found.last, "loss": math.inf})
    (tmp_path / "curves.json").write_text(json.dumps(found.to_dict(), allow_nan=False))
    again = Curves.read(tmp_path / "curves.json")
    assert again.to_dict() == found.to_dict()
    assert again.to_dict()["loss"][-1] is None


def test_what_is_no_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no curve 'l1'; there are step, samples"):
        curves()["l1"]
    with pytest.raises(InvalidArgument, match=r"a point has \['step'\]"):
        curves().add({"step": 13})
    with pytest.raises(InvalidArgument, match="there is no point to draw"):
        Curves().draw()
    with pytest.raises(InvalidArgument, match="there is no point to draw"):
        draw_curves({})
    (tmp_path / "curves.json").write_text("[]")
    with pytest.raises(InvalidArgument, match="holds no training curves"):
        Curves.read(tmp_path / "curves.json")


def test_a_picture_shows_them(tmp_path: Path) -> None:
    found = curves()
    figure: Any = found.draw(what="Training", how="topk", path=tmp_path / "curves.png")
    axes = {one.get_ylabel().split(":")[0].split(" (")[0]: one for one in figure.axes}
    assert axes["loss"].get_yscale() == "log"
    assert np.array_equal(axes["loss"].lines[0].get_ydata(), found["loss"])
    assert [line.get_label() for line in axes["loss"].lines] == ["loss", "mse loss", "auxiliary reconstruction loss"]
    assert np.array_equal(axes["L0"].lines[0].get_ydata(), found["l0"])
    assert np.array_equal(axes["dead latents"].lines[0].get_ydata(), found["dead"], equal_nan=True)
    assert np.array_equal(axes["explained variance of the batch"].lines[0].get_ydata(), found["explained_variance"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_lies_below_the_axis_is_told() -> None:
    def drawn(*variances: float) -> tuple[Any, list[str]]:
        found = Curves()
        for step, variance in enumerate(variances, 1):
            found.add({**curves(1).last, "step": step, "explained_variance": variance})
        axes = next(a for a in draw_curves({"": found}).axes if "explained" in a.get_ylabel())
        return axes.get_ylim()[0], [text.get_text() for text in axes.texts]

    assert drawn(-2.0, 0.5, 0.6, 0.7) == (-0.05, ["begins at −2"])
    assert drawn(-2.0, -1.0, -0.5, -0.25) == (-0.55, ["begins at −2"]), "the later half is always seen"
    assert drawn(0.1, 0.2) == (0.05, [])


def test_several_share_a_picture() -> None:
    figure: Any = draw_curves({"one": curves(), "two $": curves(scale=3.0)}, what="Two")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", r"two \$"]
    assert np.array_equal(figure.axes[0].lines[1].get_ydata(), curves(scale=3.0)["loss"])


def test_a_run_shorter_than_the_window_says_that_it_knows_no_dead() -> None:
    figure: Any = curves(points=3).draw()
    [dead] = [one for one in figure.axes if one.get_ylabel() == "dead latents"]
    assert "not known" in dead.texts[0].get_text()
