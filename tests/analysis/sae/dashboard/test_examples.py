"""The bounded store against the whole corpus."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.sae.dashboard.examples import BANDS, RADIUS, ExampleStore
from probewire.analysis.sae.latents.stream import TextWindow
from probewire.clients import InvalidArgument
from tests.analysis.sae.text_windows import random_windows, window


def stored(windows: list[TextWindow], d_sae: int, **options: int) -> ExampleStore:
    store = ExampleStore(d_sae, **options)
    for item in windows:
        store.add(item)
    return store


def peaks(windows: list[TextWindow], latent: int) -> list[tuple[float, int, int]]:
    """(−value, window, position) of each window's largest activation, strongest first: by brute force."""
    found: list[tuple[float, int, int]] = []
    for index, item in enumerate(windows):
        own = item.latent == latent
        if own.any():
            best = item.value[own].max()
            found.append((-float(best), index, int(item.position[own][item.value[own] == best].min())))
    return sorted(found)


def test_the_top_is_that_of_the_whole_corpus() -> None:
    windows = random_windows(60, 7, rate=0.05)
    store = stored(windows, 7, n_top=5)
    for latent in range(7):
        expected = peaks(windows, latent)[:5]
        assert [(-e.value, e.window, e.peak) for e in store.top(latent)] == expected


def test_heat_lies_where_the_latent_fires() -> None:
    item = window("abcdefgh", {1: {0: 1.0}, 4: {0: 3.0, 1: 9.0}, 7: {0: 2.0}})
    (example,) = stored([item], 2, n_top=3).top(0)
    assert (example.peak, example.value) == (4, 3.0)
    assert {int(i) - RADIUS: float(example.heat[i]) for i in np.flatnonzero(example.heat)} == {-3: 1.0, 0: 3.0, 3: 2.0}


def test_of_equal_activations_the_first_is_the_peak() -> None:
    item = window("abcdef", {2: {0: 5.0}, 4: {0: 5.0}})
    assert stored([item], 1).top(0)[0].peak == 2


def test_a_latent_that_never_fires_has_no_examples() -> None:
    store = stored([window("abc", {1: {0: 1.0}}), window("xyz", {})], 2)
    assert store.top(1) == []
    assert store.sampled(1) == []
    assert len(store.windows) == 2


def test_the_sample_is_uniform_over_windows() -> None:
    """Each of 40 windows is kept by a reservoir of 10 a quarter of the time: Binomial(600, ¼), five deviations."""
    windows = [window("ab", {1: {0: 1.0 + index}}, text=index) for index in range(40)]
    kept = np.zeros(40)
    for seed in range(600):
        store = stored(windows, 1, n_top=1, n_sampled=10, seed=seed)
        kept[[e.window for e in store._sampled.examples(0)]] += 1
    assert kept.sum() == 6000
    assert np.abs(kept - 150).max() < 5 * np.sqrt(600 * 0.25 * 0.75)


def test_sampled_examples_come_from_their_bands_and_are_not_among_the_top() -> None:
    windows = [window("ab", {1: {0: 1.0 + index}}, text=index) for index in range(80)]
    store = stored(windows, 1, n_top=4, n_sampled=100)
    found = store.sampled(0, a_band=2)
    assert len(found) == 2 * len(BANDS)
    assert not {e.window for e in found} & {e.window for e in store.top(0)}
    for place, (low, high) in enumerate(BANDS):
        for example in found[2 * place : 2 * place + 2]:
            assert example.quantile is not None
            assert low < example.quantile <= high
            assert example.quantile == pytest.approx((example.window + 1) / 80), "values rise with the window"


def test_sizes_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="n_top"):
        ExampleStore(3, n_top=0)
