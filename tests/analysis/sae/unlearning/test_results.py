"""Scores and reasons from made-up accuracies."""

from __future__ import annotations

import pytest

from probewire.analysis.sae.latents.statistics import LatentCounts, compare
from probewire.analysis.sae.unlearning.mcq import Accuracy
from probewire.analysis.sae.unlearning.results import REASONS, Clamp, ClampResult, Forgetting, Reason, zero_reasons
from tests.analysis.sae.text_windows import window

__all__ = ["forgetting_of", "result"]


def result(forget: int | None, retain: int, *, multiplier: float = 25, latents: tuple[int, ...] = (3,)) -> ClampResult:
    clamp = Clamp(0.01, 10, multiplier, latents if forget is not None else ())
    asked = None if forget is None else Accuracy(forget, 20)
    sets = {} if forget is None else {"one": Accuracy(retain, 100), "two": Accuracy(100, 100)}
    return ClampResult(clamp, asked, sets, 0.99)


def forgetting_of(
    *results: ClampResult, fired: int = 4, trained: bool = True, controls: tuple[tuple[ClampResult, ...], ...] = ()
) -> Forgetting:
    counts = LatentCounts.empty(4, blocks=2)
    counts.add(window("ab", {1: {0: 1.0}}))
    known = {"forget": Accuracy(20, 30), "one": Accuracy(100, 120)}
    about = {"config": {}, "sae": "toy"}
    return Forgetting(results, compare(counts, counts), {3: fired}, known, trained, 0.99, about, controls)


def test_the_gate_is_of_all_sets_together() -> None:
    assert result(5, 98).passes, "198 of 200"
    assert not result(5, 97).passes
    assert not result(None, 0).passes
    assert result(None, 0).side_effects is None


def test_the_score_is_of_the_best_that_passes() -> None:
    found = forgetting_of(result(0, 50), result(12, 99), result(9, 100), result(9, 99, multiplier=50))
    assert found.score == pytest.approx(1 - 9 / 20)
    assert found.best is found.results[2]
    assert found.reasons == ()
    assert "9/20" in found.summary
    assert forgetting_of(result(20, 100), result(19, 99)).score == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("results", "fired", "trained", "expected"),
    [
        ([result(None, 0), result(None, 0)], 4, True, ("no latent passes the threshold",)),
        ([result(20, 100)], 0, True, ("none fire on the questions",)),
        ([result(20, 100)], 4, True, ("no answer changes",)),
        ([result(3, 10), result(20, 100)], 4, True, ("side-effect gate",)),
        ([result(3, 10)], 4, True, ("side-effect gate",)),
        ([result(20, 100), result(None, 0)], 4, False, ("untrained SAE", "no answer changes")),
    ],
)
def test_every_zero_has_a_reason(
    results: list[ClampResult], fired: int, trained: bool, expected: tuple[Reason, ...]
) -> None:
    found = forgetting_of(*results, fired=fired, trained=trained)
    assert found.score == 0
    assert found.reasons == zero_reasons(results, {3: fired}, trained=trained) == expected
    for reason in expected:
        assert f"{reason}: {REASONS[reason]}" in found.summary
        assert reason in repr(found)


def test_the_table_shows_every_configuration() -> None:
    lines = forgetting_of(result(9, 100), result(None, 0), result(9, 2)).table().splitlines()
    assert len(lines) == 5
    assert "9/20 (0.450" in lines[1]
    assert lines[1].endswith("passes")
    assert "not run" in lines[2]
    assert lines[3].endswith("fails")


def test_random_latents_are_scored_as_the_run_is() -> None:
    draws = (
        (result(20, 100), result(0, 50)),
        (result(20, 100), result(18, 99)),
        (result(17, 100, multiplier=50), result(12, 99)),
    )
    found = forgetting_of(result(9, 100), result(12, 100), controls=draws)
    assert found.control_scores == pytest.approx((0, 0.1, 0.4))
    assert found.score == pytest.approx(0.55)
    assert found.table().endswith("; random latents: 0.000, 0.100, 0.400")
    told = found.to_json()
    assert told["control_scores"] == list(found.control_scores)
    assert told["control_details"][2][1]["forget"]["right"] == 12
    idle = forgetting_of(result(9, 100), controls=((result(None, 0),), (result(9, 100),)))
    assert idle.to_json()["control_scores"] == [None, pytest.approx(0.55)]
    none = forgetting_of(result(9, 100))
    assert "random" not in none.summary
    assert none.to_json()["control_scores"] == []


def test_too_few_random_latents_are_told() -> None:
    few = forgetting_of(result(9, 100, latents=(3, 5)), controls=((result(20, 100),),))
    assert few.summary.endswith("; random latents: 0.000 (fewer than chosen, as no more fire)")
    none = forgetting_of(result(9, 100), controls=((result(None, 0),), (result(None, 0),)))
    assert none.summary.endswith("; random latents: not run")
    assert none.control_scores == (0, 0)
