"""Pronoun scores from plain runs; edits reach the word's token alone; a circuit is found on what tells occupations apart."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.datasets import load_set
from probewire.analysis.editing.circuit.bias import find_bias_circuit, pronoun_prompts, pronoun_rows, score_bias
from probewire.clients import Client, InvalidArgument, Scale

DATA = load_set("pronouns").data
HE, SHE = "a", "b"


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny tokenizer has a token a byte: pronouns of one letter are one token."""
    changed = {**DATA, "he": [HE], "she": [SHE]}
    monkeypatch.setattr(
        "probewire.analysis.editing.circuit.bias.load_set", lambda name: type("Set", (), {"data": changed})
    )


@pytest.mark.usefixtures("letters")
def test_scores_are_differences_of_logits_and_edits_reach_the_word(tiny: Client) -> None:
    prompts, words = pronoun_prompts("held_out")
    assert len(prompts) == 3 * (24 + 12)
    site = "resid_post.1"
    bare, changed, told = (
        *score_bias(tiny, [(), [(site, Scale(0.0))]]),
        score_bias(tiny, [[(site, Scale(0.0))]], at="occupations")[0],
    )
    assert bare.occupations.shape == (3, 24)
    assert bare.men.shape == bare.women.shape == (3, 6)
    ids = [tiny.token(letter) for letter in (HE, SHE)]
    index = 36 + 5
    place = len(tiny.tokenize(prompts[index][: prompts[index].index(words[index]) + len(words[index])]).token_ids) - 1
    for scores, hooks in (
        (bare, []),
        (changed, [{"site": site, "edit": {"scale": {"factor": 0}}, "where": {"positions": [place]}}]),
    ):
        logits = tiny.run(prompts[index], hooks=hooks, capture="logits", progress=False)["logits"][-1]
        assert scores.occupations[1, 5] == pytest.approx(logits[ids[0]] - logits[ids[1]], rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(told.men, bare.men, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(told.occupations, changed.occupations, rtol=1e-4, atol=1e-5)
    assert bare.deviation == pytest.approx(bare.occupations.std(axis=1).mean())
    assert bare.gap_interval.value == pytest.approx(bare.gap)
    rows = pronoun_rows(tiny, [site], half="held_out")[site]
    np.testing.assert_allclose(
        rows[index], tiny.run(prompts[index], capture=site, progress=False)[site][place], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InvalidArgument, match="train or held_out"):
        score_bias(tiny, half="test")


@pytest.mark.usefixtures("letters")
def test_the_circuit_of_occupations(tiny: Client) -> None:
    found = find_bias_circuit(tiny, n=4, target=0.6, tolerance=0.5)
    assert 1 <= len(found.units) < found.space.size
    assert found.origin.faithfulness is not None
    assert found.origin.faithfulness >= 0.6
    assert found.origin.model_hash == tiny.describe().model_hash
