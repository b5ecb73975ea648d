"""Adaptive L0: the right k on dictionaries whose agreement is known, a conclusion in every case, and a real small run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.seeds.adaptive import AdaptiveL0, adaptive_l0
from probewire.analysis.sae.seeds.cells import Condition, Trained
from probewire.analysis.sae.training.array_trainer import ArrayTrainer
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_data import N_FEATURES, noisy, planted

NOISE = {1: 0.1, 2: 0.3, 4: 0.6, 8: 1.0}
VARIANCE = {1: 0.15, 2: 0.4, 4: 0.6, 8: 0.7}


def run(folder: Path, noise: Mapping[int, float] = NOISE, **options: Any) -> AdaptiveL0:
    given: dict[str, Any] = {
        "d_sae": N_FEATURES,
        "fixed_k": 8,
        "ks": (1, 2, 4, 8),
        "seeds": range(5),
        "final_seeds": range(10, 15),
        "identity": {},
        "resamples": 2000,
    }
    return adaptive_l0(noisy(noise.__getitem__, VARIANCE.__getitem__), folder=folder, **{**given, **options})


def test_the_most_stable_k_above_the_floor_is_chosen_and_wins(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert [row.condition.k for row in found.search.rows] == [1, 2, 4, 8]
    assert max(found.search.rows, key=lambda row: row.comparison.lcb).condition.k == 1, "but it rebuilds too little"
    assert found.chosen.condition == Condition(2, N_FEATURES, 25)
    assert found.adaptive.condition == Condition(2, N_FEATURES, 40)
    assert found.adaptive.seeds == (10, 11, 12, 13, 14)
    assert found.verdict == "yes"
    assert found.gain is not None
    assert found.gain.low > 0
    assert found.conclusion.startswith("adaptive > fixed: yes. PWMCC ")
    assert "explained variance 0.400 against 0.700" in found.conclusion
    assert "above chance" in found.conclusion
    assert "candidate" not in found.conclusion
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["chosen_k"] == 2


def test_a_lower_floor_lets_the_smallest_in_and_says_so(tmp_path: Path) -> None:
    found = run(tmp_path, floor=0.1)
    assert found.chosen.condition.k == 1
    assert "k 1 is the smallest candidate" in found.conclusion


def test_equal_dictionaries_leave_it_undecided(tmp_path: Path) -> None:
    found = run(tmp_path, dict.fromkeys(NOISE, 0.5), fixed_k=4, ks=(2, 8), method="jackknife")
    assert found.verdict == "undecided"
    assert found.gain is not None
    assert found.gain.low < 0 < found.gain.high
    assert "adaptive > fixed: undecided" in found.conclusion


def test_a_choice_that_does_worse_is_a_no(tmp_path: Path) -> None:
    """The fixed k is not among the candidates, and better than all of them."""
    found = run(tmp_path, fixed_k=2, ks=(4, 8))
    assert found.verdict == "no"
    assert "adaptive > fixed: no" in found.conclusion


def test_the_fixed_k_itself_may_be_chosen(tmp_path: Path) -> None:
    found = run(tmp_path, fixed_k=2)
    assert found.verdict == "same k"
    assert found.gain is None
    assert found.adaptive is found.fixed
    assert "The search chose k 2, which is the fixed one" in found.conclusion
    assert found.to_json()["gain"] is None


def test_dictionaries_like_random_ones_are_not_above_chance(tmp_path: Path) -> None:
    found = run(tmp_path, dict.fromkeys(NOISE, 100.0))
    assert "agree not above chance" in found.conclusion


def test_no_k_above_the_floor_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"no k reaches .* 0.9 \(k 1: 0.150, k 2: 0.400"):
        run(tmp_path, floor=0.9)


def test_seeds_of_the_search_do_not_judge_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"seeds \[4\] are in the search and in the final"):
        run(tmp_path, final_seeds=range(4, 9))
    assert not list(tmp_path.iterdir())


def test_it_resumes_with_both_parts(tmp_path: Path) -> None:
    def refuse(condition: Condition, seed: int) -> Trained:
        raise AssertionError(f"{condition} and {seed} are finished")

    first = run(tmp_path)
    again: Callable[..., AdaptiveL0] = adaptive_l0
    second = again(
        refuse,
        d_sae=N_FEATURES,
        fixed_k=8,
        ks=(1, 2, 4, 8),
        seeds=range(5),
        final_seeds=range(10, 15),
        identity={},
        resamples=2000,
        folder=tmp_path,
    )
    assert second.to_json() == first.to_json()


def test_trained_saes_on_planted_data_reach_a_conclusion(tmp_path: Path) -> None:
    """Real trainings, tiny: k of about the true L0 (1.9) agrees far better than chance and than one much too large."""
    rows, _ = planted(2500)
    trainer = ArrayTrainer(rows, TrainConfig(architecture="topk", d_sae=1, k=1, steps=1, batch_size=256, lr=3e-3))
    found = adaptive_l0(
        trainer,
        d_sae=N_FEATURES,
        ks=(3, 12),
        fixed_k=12,
        seeds=range(4),
        epochs=12,
        final_seeds=range(10, 14),
        final_epochs=15,
        folder=tmp_path,
        identity=trainer.identity,
    )
    assert found.chosen.condition.k == 3
    assert found.verdict == "yes", found.conclusion
    assert found.adaptive.comparison.lcb > 0.1
