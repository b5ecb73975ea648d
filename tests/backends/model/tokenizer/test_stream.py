"""Pieces of a stream against the library's own decoding of the whole, for every kind of tokenizer."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from probewire.backends.model.tokenizer import StreamDecoder
from tests.tiny_tokenizers import Kind

MARK = "\ufffd"
TEXTS = (
    "When Mary and John went to the store, John gave a drink to Mary",
    "The war lasted from the year 1732 to the year 17",
    "  Two spaces, a\ttab,\n\n and lines \n",
    "naïve café — “quotes” … 世界 👩‍🚀🏳️‍🌈 e\u0301",
    "don't , stop . it 's [x] ! ## _ ▁ <0x41> <s> </s>",
)


def _streamed(kind: Kind, prompt: list[int], new: list[int]) -> tuple[list[str], str]:
    decoder = StreamDecoder(kind.ours, prompt)
    return [decoder.add(token) for token in new], decoder.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_cut_anywhere_is_what_the_library_adds(kind: Kind, text: str) -> None:
    ids = kind.encode(text)
    whole = kind.theirs.decode(ids, skip_special_tokens=False)
    for cut in range(1, len(ids)):
        before = kind.theirs.decode(ids[:cut], skip_special_tokens=False)
        new = [i for i in ids[cut:] if i not in kind.ours.hidden_ids]
        if len(new) < len(ids) - cut or before.endswith(MARK):
            continue  # a special token among the new ones, or half a character in the prompt: below
        pieces, rest = _streamed(kind, ids[:cut], new)
        assert before + "".join(pieces) + rest == whole
        assert rest == ""


@given(seed=st.integers(0, 2**32))
def test_any_ids_are_what_the_library_adds(kind: Kind, seed: int) -> None:
    """Invalid bytes apart, where the byte-fallback decoder spoils whole characters beside them and we do not."""
    draw = random.Random(seed)
    plain = [i for i in range(kind.n_tokens) if i not in kind.ours.hidden_ids]
    ids = [draw.choice(plain) for _ in range(draw.randrange(2, 40))]
    cut = draw.randrange(1, len(ids))
    before = kind.theirs.decode(ids[:cut], skip_special_tokens=False)
    whole = kind.theirs.decode(ids, skip_special_tokens=False)
    pieces, rest = _streamed(kind, ids[:cut], ids[cut:])
    given_out = kind.ours.decode(ids[:cut]).rstrip(MARK) + "".join(pieces) + rest
    assert given_out.replace(MARK, "") == kind.ours.decode(ids).replace(MARK, "")
    if MARK not in whole or kind.name == "byte_level":
        assert kind.ours.decode(ids) == whole
        if not before.endswith(MARK):
            assert before + "".join(pieces) + rest == whole


def test_special_tokens_give_no_text(kind: Kind) -> None:
    draw = random.Random(3)
    ids = kind.encode("When Mary and John went to the store")
    for _ in range(20):
        mixed = [i for token in ids for i in (token, *draw.sample(sorted(kind.ours.hidden_ids), draw.randrange(2)))]
        pieces, rest = _streamed(kind, [ids[0]], mixed[1:])
        plain, _ = _streamed(kind, [ids[0]], ids[1:])
        assert "".join(pieces) + rest == "".join(plain)


def test_a_character_is_given_out_whole_and_once(kind: Kind) -> None:
    if kind.name == "wordpiece":
        pytest.skip("it has no bytes: an emoji is unknown to it")
    ids = kind.encode("a 😀b")
    pieces, rest = _streamed(kind, ids[:1], ids[1:])
    assert "".join(pieces) + rest == "".join(pieces)
    assert MARK not in "".join(pieces)
    assert [piece for piece in pieces if "😀" in piece] == ["😀"]


def test_a_character_that_the_prompt_begins_is_the_generations(kind: Kind) -> None:
    if kind.name == "wordpiece":
        pytest.skip("it has no bytes: an emoji is unknown to it")
    ids = kind.encode("a 😀b")
    cut = max(i for i, token in enumerate(ids) if kind.ours.token(token) == MARK)
    pieces, rest = _streamed(kind, ids[:cut], ids[cut:])
    assert ("".join(pieces), rest) == ("😀b", "")
    pieces, rest = _streamed(kind, ids[: cut - 2], [*ids[cut - 2 : cut], *kind.encode("b")[1:]])
    assert "".join(pieces).startswith(MARK), "cut off for good"
    assert _streamed(kind, ids[: cut - 2], ids[cut - 2 : cut])[1] == MARK
