"""A sweep: every cell once, resumed where it stopped, and a row's figures those of its dictionaries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.sae.seeds.cells import Condition, Trained
from probewire.analysis.sae.seeds.controls import random_dictionaries
from probewire.analysis.sae.seeds.stability import stability
from probewire.analysis.sae.seeds.sweeps import Sweep, conditions, run_sweep
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.planted_data import D_IN, noisy

OVER = conditions([1, 2, 4], [12, 24], epochs=3)
SEEDS = range(4)
TRAIN = noisy(lambda k: 0.2 * k, lambda k: 0.1 * k)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return run_sweep(TRAIN, OVER, SEEDS, folder=tmp_path_factory.mktemp("sweep"), identity={}, matching=True)


def test_rows_are_the_conditions_in_order(sweep: Sweep) -> None:
    assert [row.condition for row in sweep.rows] == OVER
    assert [row.condition.d_sae for row in sweep.rows] == [12, 12, 12, 24, 24, 24]
    assert sweep.row(k=2, d_sae=24).condition == Condition(2, 24, 3)
    with pytest.raises(InvalidArgument, match="2 conditions have"):
        sweep.row(k=2)


def test_a_row_is_what_its_dictionaries_are(sweep: Sweep) -> None:
    row = sweep.row(k=2, d_sae=24)
    given = {f"seed {seed}": np.asarray(TRAIN(row.condition, seed).decoder) for seed in SEEDS}
    known = stability(given)
    np.testing.assert_array_equal(row.stability.pairs, known.pairs)
    random = stability(random_dictionaries(D_IN, 24, [100_000 + seed for seed in SEEDS]))
    np.testing.assert_array_equal(row.random.pairs, random.pairs)
    assert row.comparison.lcb == pytest.approx(known.interval().low - random.interval().high)
    assert row.explained_variance == pytest.approx(0.2)
    assert row.comparison.lcb > 0.05


def test_more_noise_is_less_stable(sweep: Sweep) -> None:
    for d_sae in (12, 24):
        means = [sweep.row(k=k, d_sae=d_sae).stability.mean for k in (1, 2, 4)]
        assert means == sorted(means, reverse=True)


def test_the_table_and_the_json_have_every_row(sweep: Sweep) -> None:
    lines = sweep.table().splitlines()
    assert lines[2 + len(OVER)] == ""
    row = sweep.row(k=4, d_sae=12)
    assert f"| 4 | 12 | 3 | 4 | {row.stability.mean:.4f} [" in lines[4]
    found = json.loads(json.dumps(sweep.to_json(), allow_nan=False))
    assert found[2]["pwmcc"]["mean"] == pytest.approx(row.stability.mean)
    assert found[2]["one_to_one"] == pytest.approx(row.stability.assigned_mean)
    assert found[2]["l0"] == [4.0] * 4


def test_the_table_says_how_to_read_it(sweep: Sweep) -> None:
    assert "matched_controls (its Gaussian control) tells" in sweep.table()
    assert "EV is 0 or less" not in sweep.table()
    poor = replace(sweep.rows[0], explained_variances=np.full(4, -1.0))
    assert "EV is 0 or less at k 1 of 12: " in Sweep((poor, *sweep.rows[1:])).table()


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    trained: list[tuple[Condition, int]] = []

    def until(limit: int) -> Callable[[Condition, int], Trained]:
        def train_one(condition: Condition, seed: int) -> Trained:
            if len(trained) == limit:
                raise KeyboardInterrupt
            trained.append((condition, seed))
            return TRAIN(condition, seed)

        return train_one

    with pytest.raises(KeyboardInterrupt):
        run_sweep(until(5), OVER[:2], SEEDS, folder=tmp_path, identity={"data": 1})
    found = run_sweep(until(100), OVER[:2], SEEDS, folder=tmp_path, identity={"data": 1})
    assert trained == [(condition, seed) for condition in OVER[:2] for seed in SEEDS], "each once, none again"
    whole = run_sweep(TRAIN, OVER[:2], SEEDS, folder=tmp_path / "whole", identity={"data": 1})
    assert found.to_json() == whole.to_json()


@pytest.mark.parametrize(
    ("over", "seeds", "reason"),
    [
        ([], range(4), "at least one condition"),
        ([OVER[0], OVER[0]], range(4), "each condition and seed once"),
        (OVER[:1], [1, 1, 2, 3], "each condition and seed once"),
        (OVER[:1], range(3), "need 4 seeds or more, got 3"),
    ],
)
def test_nothing_is_trained_for_a_sweep_that_cannot_be(
    tmp_path: Path, over: list[Condition], seeds: list[int], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        run_sweep(TRAIN, over, seeds, folder=tmp_path, identity={})
    assert not list(tmp_path.iterdir())
