"""The first-letter task on a model: rows are read at the word, and words of several tokens are left out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from probewire.analysis.sae.scoring.first_letter import read_first_letters, shipped_words
from probewire.clients import Client, InvalidArgument
from tests.analysis.sae.conftest import SITE


def test_shipped_words() -> None:
    words = shipped_words()
    assert len(set(words)) == len(words) > 1500
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert sum(n >= 20 for n in Counter(word[0] for word in words).values()) >= 20


def test_rows_are_read_at_the_word(client: Client) -> None:
    """The tiny model's tokens are bytes, so that only words of one letter are one token."""
    words = ["a", "b", "c", "d", "word"]
    found = read_first_letters(client, SITE, words=words, examples=2, batch=3, progress=False)
    assert found.words == ("a", "b", "c", "d")
    assert found.letters == ("a", "b", "c", "d")
    assert "4 words of one token (1 of several left out), seed 0" in found.how
    again = read_first_letters(client, SITE, words=words, examples=2, progress=False)
    np.testing.assert_allclose(again.rows, found.rows, rtol=1e-4, atol=1e-5)
    alone = read_first_letters(client, SITE, words=["a", "b"], examples=0, progress=False)
    ids = client.tokenize("\n a has the first letter:").token_ids
    assert client.tokenize("\n a has the first letter:").tokens[3] == "a"
    np.testing.assert_allclose(alone.rows[0], client.run([list(ids)], capture=[SITE]).captures[SITE][3], atol=1e-5)


def test_fewer_words_a_letter(client: Client) -> None:
    found = read_first_letters(
        client, SITE, words=["a", "A", "b", "B", "c"], most_a_letter=1, examples=0, progress=False
    )
    assert found.letters == ("a", "b", "c")


def test_what_cannot_be_read_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"letters a … z, not .*don.t"):
        read_first_letters(client, SITE, words=["don't"])
    with pytest.raises(InvalidArgument, match="0 of 2 words are one token"):
        read_first_letters(client, SITE, words=["several", "tokens"], progress=False)
    with pytest.raises(InvalidArgument, match="most_a_letter must be 1 or more"):
        read_first_letters(client, SITE, words=["a", "b"], most_a_letter=0)
