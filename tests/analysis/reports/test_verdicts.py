"""Three verdicts, how many items would decide, and many checks at once."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.reports.statistics import measured, paired
from probewire.analysis.reports.verdicts import Check, holm, judged, overall
from probewire.protos.errors import InvalidArgument


def _answers(n: int, lost: int, won: int) -> Check:
    """`lost` of n items become wrong, `won` right; two points may be lost."""
    base = np.arange(n) % 2 == 0
    variant = base.copy()
    variant[np.flatnonzero(base)[:lost]] = False
    variant[np.flatnonzero(~base)[:won]] = True
    return judged("items", paired(base, variant), -0.02, suite="tasks", unit="share")


def test_two_hundred_items_with_four_per_cent_changed_cannot_certify_two_points() -> None:
    """Half a width is 1.96·√(.04/200) = 2.8 points at least, and (1.96/.02)²·.04 = 385 items the fewest that would."""
    found = _answers(200, 4, 4)
    assert found.verdict == "inconclusive"
    assert 0.0277 < (found.figure.high - found.figure.low) / 2 < 0.034
    assert found.needed is not None
    assert 385 <= found.needed < 550
    enough = 50 * -(-found.needed // 50)
    assert _answers(enough, enough // 50, enough // 50).verdict == "pass", "with the same share changed"
    fewer = enough - 100
    assert _answers(fewer, fewer // 50, fewer // 50).verdict == "inconclusive"


def test_harm_beyond_the_margin_fails() -> None:
    found = _answers(200, 30, 2)
    assert (found.verdict, found.needed) == ("fail", None)
    assert found.p_harm < 0.001


def test_few_items_without_a_change_say_nothing() -> None:
    found = _answers(40, 0, 0)
    assert found.verdict == "inconclusive"
    assert found.needed == pytest.approx(189, abs=1)
    assert _answers(192, 0, 0).verdict == "pass"


def test_a_figure_that_should_stay_small() -> None:
    rng = np.random.default_rng(0)
    assert judged("kl", measured(rng.exponential(0.01, 60)), 0.05, worse="higher").verdict == "pass"
    assert judged("kl", measured(rng.exponential(0.2, 60)), 0.05, worse="higher").verdict == "fail"
    assert judged("kl", measured(rng.exponential(0.05, 20)), 0.05, worse="higher").verdict == "inconclusive"


def test_what_is_no_number_fails() -> None:
    found = judged("kl", measured([0.1, float("nan")]), 0.05, worse="higher")
    assert found.verdict == "fail"
    assert holm([found])[0].verdict == "fail"
    with pytest.raises(InvalidArgument, match="finite"):
        judged("kl", measured([0.1, 0.2]), float("nan"))


def test_one_of_many_that_is_barely_harmed_is_no_claim() -> None:
    """Holm: p·(checks left), never falling. One barely below its bound among twenty is chance; alone it is not."""
    rng = np.random.default_rng(7)
    values = rng.normal(size=100)
    barely = judged("barely", measured(values - values.mean() - 0.22), 0.0)
    assert barely.verdict == "fail"
    assert holm([barely])[0].verdict == "fail"
    fine = [judged(f"fine {i}", measured(rng.normal(0.5, 1, 100)), 0.0) for i in range(19)]
    among = holm([*fine, barely])[-1]
    assert among.verdict == "inconclusive"
    assert among.p_adjusted == pytest.approx(20 * barely.p_harm)
    assert "not among" in among.note
    clear = judged("clear", measured(rng.normal(-2, 1, 100)), 0.0)
    assert holm([*fine, clear])[-1].verdict == "fail"


def test_overall() -> None:
    good, bad, open_ = (_answers(*n) for n in ((500, 10, 10), (200, 30, 2), (40, 0, 0)))
    assert overall([good]) == "pass"
    assert overall([good, open_]) == "inconclusive"
    assert overall([good, open_, bad]) == "fail"
    assert overall([]) == "inconclusive", "nothing was tested"
