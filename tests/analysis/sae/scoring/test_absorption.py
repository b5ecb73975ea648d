"""Absorption: a planted absorber is found and an innocent latent is not; the rules are checked word by word on paper."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.scoring.absorption import absorbed_fraction, absorption, is_absorbed, split
from probewire.analysis.sae.scoring.first_letter import FirstLetterRows
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_sae import orthonormal, sae_of

LETTERS = "abcdef"
N, D_IN, MARKED = 120, 48, 4
BASIS = orthonormal(len(LETTERS) + 1, D_IN)
DIRECTION, MARK = BASIS[: len(LETTERS)], BASIS[-1]
RNG = np.random.default_rng(0)


def planted() -> FirstLetterRows:
    """Every word holds 3 of its letter's direction; four words of "a" hold 3 of a mark besides."""
    words, rows = list[str](), list[np.ndarray]()
    for index, letter in enumerate(LETTERS):
        for number in range(N):
            words.append(f"{letter}{'x' if letter == 'a' and number < MARKED else 'o'}{number}")
            marked = words[-1][1] == "x"
            rows.append(3 * DIRECTION[index] + 3 * MARK * marked + 0.1 * RNG.normal(size=D_IN))
    return FirstLetterRows(tuple(words), np.stack(rows).astype(np.float32), "planted")


DATA = planted()
NOISY = FirstLetterRows(DATA.words, (DATA.rows + 0.7 * RNG.normal(size=DATA.rows.shape)).astype(np.float32), "noisy")


def dictionary(absorbs: bool) -> LoadedSae:
    """A latent a letter and one of the mark, which either holds "a" and silences its latent, or holds the mark alone."""
    w_enc = np.concatenate([DIRECTION, MARK[None]]).T.copy()
    w_dec = np.concatenate([DIRECTION, MARK[None]])
    if absorbs:
        w_enc[:, 0] -= 2 * MARK
        w_enc[:, -1] *= np.sqrt(2)
        w_dec[-1] = (MARK + DIRECTION[0]) / np.sqrt(2)
    return sae_of(w_dec, w_enc=w_enc, b_enc=-0.6)


def test_a_planted_absorber_is_found() -> None:
    found = absorption(dictionary(absorbs=True), DATA, held_out=0.5, least_letters=6)
    one = found.letters["a"]
    assert one.main == (0,), "four words of 120 do not raise F1 by .03: no split"
    marked = [word for word in one.words if word.word[1] == "x"]
    assert marked, "the seed holds some of the four words out"
    for word in marked:
        assert word.full
        assert word.fraction == 1.0
        assert word.top == len(LETTERS)
        assert word.top_share > 0.6
        assert not word.main_fires
    assert not any(word.full or word.fraction for word in one.words if word.word[1] != "x")
    assert found.full.value == pytest.approx(len(marked) / len(one.words) / len(LETTERS))
    assert found.fraction.value == found.full.value
    assert found.full.low <= found.full.value <= found.full.high
    named = found.to_json()
    assert named["mean"]["mean_full_absorption_score"] == found.full.value
    assert named["mean"]["mean_num_split_features"] == 1
    assert named["eval_result_details"][0]["num_full_absorption"] == len(marked)


def test_an_innocent_latent_is_not() -> None:
    found = absorption(dictionary(absorbs=False), DATA, held_out=0.5, least_letters=6)
    assert (found.full.value, found.fraction.value) == (0, 0)
    assert all(word.main_fires for one in found.letters.values() for word in one.words)


def test_split_latents_are_main_latents() -> None:
    """Half of the words of "b" have a latent of their own: two main latents, and nothing absorbed."""
    words = [word if word[0] != "b" or i % 2 else f"bx{i}" for i, word in enumerate(DATA.words)]
    rows = DATA.rows + np.array([3 * MARK * (word[:2] == "bx") for word in words])
    clean = [i for i, word in enumerate(words) if word[:2] != "ax"]
    data = FirstLetterRows(tuple(words[i] for i in clean), rows[clean].astype(np.float32), "split")
    w_enc = np.concatenate([DIRECTION, MARK[None]]).T.copy()
    w_dec = np.concatenate([DIRECTION, MARK[None]])
    w_enc[:, 1] -= 2 * MARK
    w_dec[-1] = (MARK + DIRECTION[1]) / np.sqrt(2)
    found = absorption(sae_of(w_dec, w_enc=w_enc, b_enc=-0.6), data, held_out=0.5, least_letters=6)
    one = found.letters["b"]
    assert sorted(one.main) == [1, len(LETTERS)]
    assert one.f1_sparse[0] < 0.9 < one.f1_sparse[1]
    assert found.full.value == 0


COSINES = np.array([0.9, 0.5, 0.05, 0.3, -0.2, 0.02, 0.4, 0.2])


@pytest.mark.parametrize(
    ("latents", "projection", "fraction", "full"),
    [
        ([0, 4.0, 0, 0, 0, 0, 0, 0], 4.0, 1.0, True),  # 2 of 4 by one absorber, main silent
        ([0, 3.0, 0, 0, 0, 0, 0, 0], 4.0, 0.0, False),  # 1.5 of 4 is below .4
        ([0, 0, 40.0, 0, 0, 0, 0, 0], 4.0, 0.0, True),  # cosine .05: enough for full, not for a fraction
        ([0, 0, 0, 0, 0, 200.0, 0, 0], 4.0, 0.0, False),  # cosine .02
        ([0, 2.0, 0, 2.0, 0, 0, 0, 0], 4.0, 1.0, False),  # 1 + .6: together .4, the top one .25
        ([1.0, 4.0, 0, 0, 0, 0, 0, 0], 4.0, 2 / 2.9, False),  # main .9, absorbed 2
        ([1.0, 8.0, 0, 0, 0, 0, 0, 0], 4.0, 3.1 / 4, False),  # absorbed 4, of which 3.1 are unaccounted
        ([5.0, 8.0, 0, 0, 0, 0, 0, 0], 4.0, 0.0, False),  # main explains it all
        ([0, 1.0, 0, 1.0, 0, 0, 1.0, 1.0], 2.9, 1.0, False),  # .5 + .3 + .4: three count, .2 does not
        ([0, 1.0, 0, 1.0, 0, 0, 1.0, 1.0], 3.2, 0.0, False),  # 1.2 of 3.2; with a fourth it would be .44
        ([0, 4.0, 0, 0, 0, 0, 0, 0], -4.0, 0.0, False),  # the probe's direction is not there
    ],
)
def test_the_rules_on_paper(latents: list[float], projection: float, fraction: float, full: bool) -> None:
    values = np.array(latents)
    assert absorbed_fraction(values, COSINES, COSINES, (0,), projection) == pytest.approx(fraction)
    assert is_absorbed(values, COSINES, COSINES, (0,), projection) is full


def test_what_it_needs_is_said() -> None:
    sae = dictionary(absorbs=True)
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        absorption(sae_of(DIRECTION, trained=False), DATA)
    with pytest.raises(FailedPrecondition, match=r"6 letters with an F1 above 0\.6, fewer than 10"):
        absorption(sae, DATA)
    few = absorption(sae, DATA, least_words=120, least_letters=1)
    assert set(few.letters) == set(LETTERS)
    with pytest.raises(FailedPrecondition, match="left out: a, b, c, d, e, f"):
        absorption(sae, DATA, least_words=121, least_letters=1)
    noise = FirstLetterRows(DATA.words, RNG.normal(size=DATA.rows.shape).astype(np.float32), "noise")
    with pytest.raises(FailedPrecondition, match="a model that holds the letters"):
        absorption(sae, noise, least_letters=6)
    with pytest.raises(InvalidArgument, match="held_out is between"):
        absorption(sae, DATA, held_out=1.5)


def test_the_origin_may_be_the_decoders() -> None:
    sae = dictionary(absorbs=True)
    sae.sae.b_dec.data += 10 * torch.tensor(DIRECTION[0], dtype=torch.float32)
    shifted = FirstLetterRows(DATA.words, DATA.rows + (10 * DIRECTION[0]).astype(np.float32), "shifted")
    sae.sae.cfg.apply_b_dec_to_input = True
    from_zero = absorption(sae, shifted, held_out=0.5, least_letters=6)
    from_bias = absorption(sae, shifted, held_out=0.5, least_letters=6, origin="b_dec")
    assert from_zero.full.value == 0, "3 of 13: the offset hides it"
    assert from_bias.full.value > 0


def test_f1_is_that_of_sklearn() -> None:
    """The probe's, fitted again by scikit-learn on the same words."""
    found = absorption(dictionary(absorbs=False), NOISY, held_out=0.5, least_letters=3)
    letters = np.array(NOISY.letters)
    sklearn: Any = import_module("sklearn.pipeline")
    scaler: Any = import_module("sklearn.preprocessing").StandardScaler
    regression: Any = import_module("sklearn.linear_model").LogisticRegression
    train, test = split(letters, 0.5, np.random.default_rng(0))
    for letter, one in found.letters.items():
        model = sklearn.make_pipeline(scaler(), regression(class_weight="balanced", max_iter=1000))
        model.fit(NOISY.rows[train].astype(np.float64), letters[train] == letter)
        guess = model.predict(NOISY.rows[test].astype(np.float64))
        f1: Any = import_module("sklearn.metrics").f1_score
        assert one.f1_probe == pytest.approx(f1(letters[test] == letter, guess), abs=1e-9)
        assert one.f1_probe < 1
        assert len(one.words) == int((guess & (letters[test] == letter)).sum())
