"""Which latents chance chooses: as many, others, of those that fire, and the same for equal clamps."""

from __future__ import annotations

import numpy as np

from probewire.analysis.sae.latents.statistics import Comparison, LatentCounts, compare
from probewire.analysis.sae.unlearning.controls import random_clamps
from probewire.analysis.sae.unlearning.results import Clamp


def fires_at(*latents: int, quiet: tuple[int, ...] = (), d_sae: int = 100) -> Comparison:
    """Those fire on the first corpus; on the second all do at 2 % of the tokens, and the quiet ones never."""
    first, second = LatentCounts.empty(d_sae, blocks=1), LatentCounts.empty(d_sae, blocks=1)
    first.tokens[0] = second.tokens[0] = 1000
    first.fired[0, list(latents)] = 5
    second.fired[0] = 20
    second.fired[0, list(quiet)] = 0
    return compare(first, second)


EVEN = tuple(range(0, 100, 2))
CLAMPS = [Clamp(0.01, n, multiplier, EVEN[:n]) for n in (3, 10) for multiplier in (25.0, 50.0)]


def test_as_many_others_that_fire() -> None:
    for draw in range(20):
        for clamp, control in zip(CLAMPS, random_clamps(CLAMPS, fires_at(*EVEN), 0, draw), strict=True):
            drawn = set(control.latents)
            assert len(drawn) == len(control.latents) == clamp.n_latents
            assert drawn <= set(EVEN) - set(clamp.latents)
            assert (control.threshold, control.n_latents) == (clamp.threshold, clamp.n_latents)
            assert control.multiplier == clamp.multiplier


def test_equal_choices_have_equal_controls() -> None:
    latents = [clamp.latents for clamp in random_clamps(CLAMPS, fires_at(*EVEN), 7, 1)]
    assert latents[0] == latents[1]
    assert latents[2] == latents[3]
    assert latents == [clamp.latents for clamp in random_clamps(CLAMPS, fires_at(*EVEN), 7, 1)]
    for seed, draw in ((7, 0), (8, 1)):
        assert latents != [clamp.latents for clamp in random_clamps(CLAMPS, fires_at(*EVEN), seed, draw)]


def test_every_other_latent_is_as_likely() -> None:
    """Of 50 that fire, 10 chosen: each of the other 40 is drawn in a quarter of the draws; six standard errors."""
    clamp = Clamp(0.01, 10, 25.0, EVEN[:10])
    counts = np.zeros(100)
    for draw in range(2000):
        counts[list(random_clamps([clamp], fires_at(*EVEN), 0, draw)[0].latents)] += 1
    expected, error = 2000 / 4, np.sqrt(2000 * 0.25 * 0.75)
    assert np.abs(counts[list(EVEN[10:])] - expected).max() < 6 * error
    assert counts.sum() == counts[list(EVEN[10:])].sum()


def test_those_that_pass_the_threshold_come_first() -> None:
    quiet = (1, 3, 50, 52, 54)
    clamps = [Clamp(0.01, n, 25.0, EVEN[:n]) for n in (2, 3, 6)] + [Clamp(0.05, 3, 25.0, EVEN[:3])]
    drawn = [set(clamp.latents) for clamp in random_clamps(clamps, fires_at(*EVEN, quiet=quiet), 0, 0)]
    assert drawn[0] < drawn[1] == {50, 52, 54} < drawn[2]
    assert len(drawn[2]) == 6
    assert drawn[3] != {50, 52, 54}, "all pass this one"


def test_what_there_is_where_few_are_left() -> None:
    clamp = Clamp(0.01, 4, 25.0, (0, 2, 4))
    (few,) = random_clamps([clamp], fires_at(0, 2, 4, 9), 0, 0)
    (none,) = random_clamps([clamp], fires_at(0, 2, 4), 0, 0)
    (nothing,) = random_clamps([Clamp(0.01, 4, 25.0, ())], fires_at(0, 2, 4), 0, 0)
    assert [few.latents, none.latents, nothing.latents] == [(9,), (), ()]
