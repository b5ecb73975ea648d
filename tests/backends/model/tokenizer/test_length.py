"""A text that is too long is known by its length, and one that fits never is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from probewire.backends.model.tokenizer import Tokenizer
from probewire.backends.model.tokenizer.codec import Codec
from probewire.backends.model.tokenizer.files import read_codec
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input, Message
from tests.tiny_tokenizers import CHATML, CORPUS, VOCAB_SIZE, Kind, sentence_piece_model, tokenizer_folder

LONGEST_FIRST = st.sampled_from(sorted({w for text in CORPUS for w in text.split()}, key=len)[-20:])
PARTS = st.one_of(
    LONGEST_FIRST,
    st.sampled_from([" ", " " * 40, "\n", "<think>   ", "<s>", "e\u0301" * 5, "ﬁ", "世", "😀", "1732", "a" * 50]),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(parts=st.lists(PARTS, max_size=30))
def test_the_bound_is_never_above_the_tokens(kind: Kind, parts: list[str]) -> None:
    text, codec = "".join(parts), kind.ours.codec
    assert codec.least_tokens(text) <= len(codec.encode(text))


NORMALIZERS = (
    {"type": "NFC"},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "StripAccents"},
    {"type": "Lowercase"},
    {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "a"},
    {"type": "Replace", "pattern": {"String": "Mary"}, "content": ""},
)


@pytest.fixture(scope="module", params=NORMALIZERS, ids=lambda step: str(step["type"]))
def shortening(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tokenizer_folder("byte_level", tmp_path_factory.mktemp("shortening"))
    file = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**file, "normalizer": request.param}))
    return read_codec(folder)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(sentence_piece_model(model_type=request.param))
    return read_codec(folder)


@given(parts=st.lists(PARTS, max_size=20))
def test_nor_where_the_tokenizer_shortens_texts(shortening: Codec, parts: list[str]) -> None:
    text = "".join(parts)
    assert shortening.least_tokens(text) <= len(shortening.encode(text))


@given(parts=st.lists(PARTS, max_size=30))
def test_nor_of_a_sentencepiece_model(pieces: Codec, parts: list[str]) -> None:
    text = "".join(parts)
    assert pieces.least_tokens(text) <= len(pieces.encode(text))


@pytest.mark.parametrize("kind_name", ["byte_level", "llama2"])
def test_a_prompt_of_a_million_tokens_is_not_tokenised(
    tmp_path: Path, kind_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tokenizer_folder(kind_name, tmp_path, chat_template=CHATML)
    ours = Tokenizer(folder, VOCAB_SIZE)
    words = [word for text in CORPUS for word in text.split()]
    draw = random.Random(0)
    long = " ".join(draw.choice(words) for _ in range(200_000))
    n_tokens = len(ours.encode(Input(long)))
    assert n_tokens > 200_000

    def never(text: str) -> list[int]:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(ours.codec, "encode", never)
    for item in (Input(long), Input(messages=(Message("user", long),))):
        with pytest.raises(InvalidArgument, match=r"has [\d,]+ characters, which are [\d,]+ tokens or more; at most"):
            ours.encode(item, at_most=n_tokens // 8)
    with pytest.raises(InvalidArgument, match="has 100000 tokens; at most 4096"):
        ours.encode(Input(token_ids=(5,) * 100_000), at_most=4096)


def test_a_long_prompt_that_fits_is_taken(kind: Kind) -> None:
    text = " ".join(["Mary"] * 3000)
    n_tokens = len(kind.encode(text))
    assert len(kind.ours.encode(Input(text), at_most=n_tokens)) == n_tokens
    with pytest.raises(InvalidArgument, match=rf"has {n_tokens} tokens; at most {n_tokens - 1} are allowed"):
        kind.ours.encode(Input(text), at_most=n_tokens - 1)
