"""The two pictures of a comparison: what is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.latents.statistics import LatentCounts, compare
from probewire.analysis.sae.latents.statistics_plots import importance_histogram, rate_scatter
from probewire.clients import InvalidArgument
from tests.analysis.sae.latents.test_statistics import counted
from tests.analysis.sae.text_windows import random_windows, window


def compared() -> Any:
    first = counted([*random_windows(10, 6), window("ab", {1: {6: 3.0}})], 8)
    return compare(first, counted(random_windows(10, 6, seed=1), 8), ("forget", "retain"))


def test_rates(tmp_path: Path) -> None:
    found = compared()
    figure: Any = rate_scatter(found, marked=[6], retain_threshold=0.01, path=tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 5000
    (axes,) = figure.axes
    points = [tuple(point) for part in axes.collections for point in part.get_offsets().tolist()]
    assert len(points) == 7, "latent 7 fires on neither"
    x, y = found.second.rate[0], found.first.rate[0]
    assert min(abs(a - x) + abs(b - y) for a, b in points) < 1e-12
    alone = (0.5 / found.second.n_tokens, found.first.rate[6])
    assert min(abs(a - alone[0]) + abs(b - alone[1]) for a, b in points) < 1e-12
    assert "6" in [text.get_text() for text in axes.texts]


def test_importance(tmp_path: Path) -> None:
    figure: Any = importance_histogram(compared(), by="divergence", path=tmp_path / "importance.png")
    assert (tmp_path / "importance.png").stat().st_size > 5000
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 7
    assert axes.get_xlabel() == "KL(forget ‖ retain), divergence, in nats"


def test_refusals() -> None:
    with pytest.raises(InvalidArgument, match="0 … 7"):
        rate_scatter(compared(), marked=[8])
    with pytest.raises(InvalidArgument, match="allowed: importance"):
        importance_histogram(compared(), by="loudness")
    silent = LatentCounts.empty(3, blocks=4)
    silent.add(window("ab", {}))
    with pytest.raises(InvalidArgument, match="nothing to draw"):
        importance_histogram(compare(silent, silent))
