"""The sets' halves share nothing, and the default model does on them what is written down (a changed model fails loudly)."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.datasets import load_set
from probewire.analysis.steering import Choice, choice, logodds_of
from probewire.clients import Client

PRONOUNS, FORMALITY = (load_set(name).data for name in ("pronouns", "formality"))


def test_the_halves_share_no_word_and_no_form() -> None:
    assert {
        kind: len(PRONOUNS[kind]["train"]) + len(PRONOUNS[kind]["held_out"])
        for kind in ("occupations", "forms", "neutral")
    } == {
        "occupations": 48,
        "forms": 6,
        "neutral": 16,
    }
    for kind in ("occupations", "forms", "neutral"):
        assert not set(PRONOUNS[kind]["train"]) & set(PRONOUNS[kind]["held_out"])
    words = [word for half in ("train", "held_out") for pair in PRONOUNS["definitional"][half] for word in pair]
    assert len(set(words)) == 24
    assert all("{}" in form for half in PRONOUNS["forms"].values() for form in half)


def test_pairs_and_choices_of_formality_are_told_apart() -> None:
    pairs = [pair for half in FORMALITY["pairs"].values() for pair in half]
    choices = [one for half in FORMALITY["choices"].values() for one in half]
    assert len({pair["formal"] for pair in pairs}) == len({pair["informal"] for pair in pairs}) == 40
    assert len({one["prompt"] for one in choices}) == 32
    for one in choices:
        assert not set(one["formal"]) & set(one["informal"])
        assert all(word.startswith(" ") for word in (*one["formal"], *one["informal"]))


@pytest.mark.slow
def test_what_the_default_model_does(default_client: Client) -> None:
    """Log-odds of he against she: after a form its occupations' deviation and the gap of defining words; of formal words."""
    he, she = ((default_client.token(word),) for word in (" he", " she"))

    def odds(words: list[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        form = PRONOUNS["forms"]["train"][0]
        return logodds_of(default_client, [Choice(form.format(word), he, she) for word in words])

    occupations = odds(PRONOUNS["occupations"]["train"])
    men, women = (odds([pair[i] for pair in PRONOUNS["definitional"]["train"]]) for i in (0, 1))
    assert occupations.mean() == pytest.approx(-0.62, abs=0.1)
    assert occupations.std() == pytest.approx(0.62, abs=0.1)
    assert (men.mean() - women.mean()) == pytest.approx(2.90, abs=0.1)
    for half, expected in (("train", -1.15), ("held_out", -1.00)):
        choices = [
            choice(default_client, one["prompt"], one["formal"], one["informal"]) for one in FORMALITY["choices"][half]
        ]
        assert logodds_of(default_client, choices).mean() == pytest.approx(expected, abs=0.1)
