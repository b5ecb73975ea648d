"""Rows of labelled texts: the mean over each text's own tokens, without the first."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.sae.scoring import probe_rows as module
from probewire.analysis.sae.scoring.probe_data import LabelledTexts
from probewire.analysis.sae.scoring.probe_rows import read_rows
from probewire.clients import Client, InvalidArgument
from tests.analysis.sae.conftest import SITE
from tests.analysis.sae.planted_sae import orthonormal, sae_of

TEXTS = LabelledTexts(
    "letters",
    {"a": ("aaab", "aacaaa"), "b": ("bbbbbbbb", "bab")},
    {"a": ("aad", "adaa", "caa"), "b": ("bb bb", "b", "bbd")},
    "by hand",
)


def test_means_over_tokens(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_rows(client, TEXTS, SITE, max_tokens=6, batch=2)
    sae = sae_of(orthonormal(10, 64))
    for split, texts in ((found.train, TEXTS.train), (found.test, TEXTS.test)):
        flat = [text for own in texts.values() for text in own]
        for text, row, length in zip(flat, split.pooled(), split.lengths, strict=True):
            tokens = client.run(text, capture=[SITE]).captures[SITE][1:6]
            assert length == len(tokens)
            np.testing.assert_allclose(row, tokens.mean(axis=0), rtol=1e-4, atol=1e-5)
        whole = split.pooled_latents(sae)
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", 7)
        np.testing.assert_allclose(split.pooled_latents(sae), whole, rtol=1e-5, atol=1e-6)
        monkeypatch.undo()
        ends = np.cumsum(split.lengths)
        for row, latents, stop, length in zip(split.pooled(), whole, ends, split.lengths, strict=True):
            tokens = split.tokens[stop - length : stop]
            np.testing.assert_allclose(row, tokens.mean(axis=0), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(latents, sae.encode(tokens).mean(axis=0), rtol=1e-5, atol=1e-6)
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    assert "tokens 1 … 5 of resid_post.1" in found.how


def test_one_class_against_the_others(client: Client) -> None:
    split = read_rows(client, TEXTS, SITE).test
    chosen, labels = split.binary(1, seed=0)
    assert labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert split.labels[chosen].tolist() == [1, 1, 1, 0, 0, 0]
    assert len(set(chosen.tolist())) == 6
    assert np.array_equal(chosen, split.binary(1, seed=0)[0])


def test_texts_without_a_token_left_are_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="2 texts have no token after the first 5"):
        read_rows(client, TEXTS, SITE, skip_first=5)
