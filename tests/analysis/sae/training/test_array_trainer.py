"""Trainings over an array: a planted dictionary is found again, a seed repeats to the bit, and nothing leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.seeds.cells import Condition, Trained
from probewire.analysis.sae.seeds.stability import best_matches, one_to_one
from probewire.analysis.sae.training.array_trainer import ArrayTrainer
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.planted_data import planted

TEMPLATE = TrainConfig(architecture="topk", d_sae=1, k=1, steps=1, batch_size=256, lr=3e-3)


def decoder(trained: Trained) -> np.ndarray:
    assert isinstance(trained.decoder, np.ndarray)
    return trained.decoder


def test_a_planted_dictionary_is_recovered() -> None:
    """Every feature of it, and not only their mean."""
    rows, dictionary = planted(20_000, d_in=32, n_features=48, firing=0.05)
    trainer = ArrayTrainer(rows, TEMPLATE)
    found = trainer(Condition(4, 64, 20), seed=0)
    recovered = best_matches(dictionary, decoder(found))[0]
    assert recovered.min() >= 0.95
    assert one_to_one(dictionary, decoder(found)).min() >= 0.95
    assert found.explained_variance > 0.9
    assert found.l0 is not None
    assert found.l0 <= 4
    untrained = trainer(Condition(4, 64, 0), seed=0)
    assert best_matches(dictionary, decoder(untrained))[0].mean() < 0.7
    assert untrained.explained_variance < 0.6


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return planted(2000)[0]


def test_a_seed_repeats_and_another_differs(rows: np.ndarray) -> None:
    trainer = ArrayTrainer(rows, TEMPLATE)
    one, again, other = (trainer(Condition(2, 24, 2), seed) for seed in (0, 0, 1))
    assert np.array_equal(decoder(one), decoder(again))
    assert one.explained_variance == again.explained_variance
    assert not np.allclose(decoder(one), decoder(other))


def test_the_last_rows_are_never_trained_on(rows: np.ndarray) -> None:
    changed = rows.copy()
    changed[1800:] = changed[1800:][::-1] * 2
    one, two = (ArrayTrainer(given, TEMPLATE)(Condition(2, 24, 2), 0) for given in (rows, changed))
    assert np.array_equal(decoder(one), decoder(two))
    assert one.explained_variance != two.explained_variance


def test_scale_has_no_say(rows: np.ndarray) -> None:
    one, two = (ArrayTrainer(given, TEMPLATE)(Condition(2, 24, 3), 0) for given in (rows, rows * 256))
    np.testing.assert_allclose(decoder(one), decoder(two), atol=1e-6)
    assert one.explained_variance == pytest.approx(two.explained_variance, abs=1e-6)


def test_epochs_are_passes_over_the_training_rows(rows: np.ndarray) -> None:
    assert ArrayTrainer(rows, TEMPLATE).steps(3) == 22  # 3 × 1800 rows in batches of 256


def test_the_identity_knows_data_and_config(rows: np.ndarray) -> None:
    one = ArrayTrainer(rows, TEMPLATE).identity
    assert one == ArrayTrainer(rows, replace(TEMPLATE, d_sae=2, k=2, steps=9, seed=4)).identity
    assert one != ArrayTrainer(rows, replace(TEMPLATE, lr=1e-3)).identity
    assert one != ArrayTrainer(rows[:-1], TEMPLATE).identity
    assert one != ArrayTrainer(rows, TEMPLATE, held_out=0.2).identity


def test_nothing_is_written_and_no_generator_is_touched(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    ArrayTrainer(rows, TEMPLATE)(Condition(2, 24, 1), 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_other_architectures_with_k(rows: np.ndarray, architecture: str) -> None:
    trainer = ArrayTrainer(rows, replace(TEMPLATE, architecture=architecture, d_sae=8))
    found, untrained = (trainer(Condition(2, 24, epochs), 0) for epochs in (20, 0))
    assert decoder(found).shape == (24, 16)
    assert found.explained_variance > untrained.explained_variance + 0.2
    assert found.l0 == pytest.approx(2, abs=0.1)


def test_bad_input_is_refused(rows: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match=r"\[row, d_in\] and held_out"):
        ArrayTrainer(rows[0], TEMPLATE)
    with pytest.raises(InvalidArgument, match="held_out a share"):
        ArrayTrainer(rows, TEMPLATE, held_out=1.0)
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        ArrayTrainer(np.where(rows > 1, np.nan, rows), TEMPLATE)
    with pytest.raises(InvalidArgument, match="leave 90 to train on and 10 to score"):
        ArrayTrainer(rows[:100], TEMPLATE)
    with pytest.raises(InvalidArgument, match="all zero or all alike"):
        ArrayTrainer(np.ones((2000, 4)), TEMPLATE)
    with pytest.raises(InvalidArgument, match="standard has no k to vary"):
        ArrayTrainer(rows, replace(TEMPLATE, architecture="standard", k=None, l1_coefficient=1.0))
    with pytest.raises(InvalidArgument, match="rows are scaled here already"):
        ArrayTrainer(rows, replace(TEMPLATE, normalisation="expected_average_only_in"))
