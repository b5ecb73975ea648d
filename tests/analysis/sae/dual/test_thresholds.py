"""Thresholds set anew: the L0 that was asked for, no latent above its rate on retain rows, and nothing untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.sae.dual.thresholds import retain_caps, with_thresholds
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.model.untrained import untrained_like
from probewire.analysis.sae.training.training import train
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.analysis.sae.dual.conftest import Two


def test_l0_is_matched_and_caps_are_kept(two: Two, tmp_path: Path) -> None:
    train(two.batches(), two.config, tmp_path / "sae", progress=False)
    rows = np.concatenate([two.forget, two.retain])
    for l0 in (1.5, 2.0):
        made = with_thresholds(tmp_path / "sae", tmp_path / f"plain{l0}", rows, l0)
        assert (made.encode(rows) > 0).sum() / len(rows) == pytest.approx(l0, rel=0.02)
        assert made.trained
    adapted = with_thresholds(tmp_path / "sae", tmp_path / "adapted", rows, 1.0, retain=two.retain, max_rate=0.05)
    rates = (adapted.encode(two.retain) > 0).mean(axis=0)
    assert rates.max() <= 0.05
    plain = with_thresholds(tmp_path / "sae", tmp_path / "plain", rows, 1.0)
    assert (plain.encode(two.retain) > 0).mean(axis=0).max() > 0.05
    np.testing.assert_array_equal(adapted.w_dec, plain.w_dec)


def test_a_cap_is_the_least_that_keeps_the_rate() -> None:
    pre = np.array([[1.0, 5.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    np.testing.assert_array_equal(retain_caps(pre, 0.5), [2.0, 0.0])
    np.testing.assert_array_equal(retain_caps(pre, 0.25), [3.0, 0.0])
    np.testing.assert_array_equal(retain_caps(pre, 0.1), [4.0, 5.0])
    np.testing.assert_array_equal(retain_caps(pre, 1.0), [0.0, 0.0])


def test_what_was_never_trained_or_cannot_be_matched_is_refused(two: Two, tmp_path: Path) -> None:
    train(two.batches(), two.config, tmp_path / "sae", progress=False)
    control = untrained_like(load(tmp_path / "sae"), tmp_path / "untrained")
    with pytest.raises(FailedPrecondition, match="says nowhere that it was trained"):
        with_thresholds(control, tmp_path / "out", two.forget, 2.0)
    with pytest.raises(FailedPrecondition, match="no factor of the thresholds gives L0 24"):
        with_thresholds(tmp_path / "sae", tmp_path / "out", two.forget, 24.0)
    with pytest.raises(InvalidArgument, match="together"):
        with_thresholds(tmp_path / "sae", tmp_path / "out", two.forget, 2.0, max_rate=0.1)
    for rate in (0.0, 2.0):
        with pytest.raises(InvalidArgument, match="max_rate is a share"):
            retain_caps(np.ones((3, 2)), rate)
