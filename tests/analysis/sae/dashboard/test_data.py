"""How the page's data is written: compact, and without losing what is shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probewire.analysis.sae.dashboard.data import BINS_PER_OCTAVE, page_data
from probewire.analysis.sae.latents.statistics import LOW
from tests.analysis.sae.dashboard.test_page import made
from tests.analysis.sae.text_windows import random_windows, window


def test_only_windows_that_are_shown_are_written() -> None:
    windows = [window("abcde", {1: {0: float(i + 1)}}, text=i) for i in range(50)]
    data = page_data(made(windows, 1), "t")
    shown = {example[0] for example in [*data["top"][0], *data["sampled"][0]]}
    assert shown == set(range(len(data["windows"])))
    assert len(data["windows"]) < 15
    assert data["words"] == ["a", "b", "c", "d", "e"], "each once"


def test_histograms_begin_at_their_first_bin() -> None:
    data = page_data(made([window("abcd", {1: {0: 1.0}, 2: {0: 8.0}, 3: {0: 8.1}})], 1), "t")
    first, *sizes = data["histograms"][0]
    assert first == -LOW * BINS_PER_OCTAVE, "1 is the lower edge of its bin"
    assert len(sizes) == 3 * BINS_PER_OCTAVE + 1
    assert (sizes[0], sizes[-1], sum(sizes)) == (1, 2, 3)


def test_sampled_examples_say_their_quantile() -> None:
    data = page_data(made(random_windows(60, 2, rate=0.3), 2), "t")
    for example in data["sampled"][0]:
        assert 0 < example[3] <= 1
    assert [example[3] for example in data["top"][0]] == [None] * 4


@pytest.mark.parametrize("d_sae", [50])
def test_it_is_compact(d_sae: int) -> None:
    """Two kilobytes a latent at most, with all its examples, of random windows (text aside)."""
    data = page_data(made(random_windows(200, d_sae, rate=0.02, length=64), d_sae), "t")
    del data["windows"]
    assert len(json.dumps(data, separators=(",", ":"))) < 2048 * d_sae
    assert not any(isinstance(v, float) and np.isnan(v) for v in data["density"])
