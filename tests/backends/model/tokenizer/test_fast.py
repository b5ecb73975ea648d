"""What a token stands for, learnt from the library's decoder, against what the kinds are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from probewire.backends.model.tokenizer.byte_letters import BYTE_OF
from probewire.backends.model.tokenizer.fast import FastCodec
from probewire.backends.model.tokenizer.files import read_codec
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input
from tests.tiny_tokenizers import VOCAB_SIZE, Kind, tokenizer_folder

TEXT = "When Mary and John went to the store, John gave 17 — a “drïnk” 世 to"


def test_tokens_joined_are_the_text(kind: Kind) -> None:
    """Behind the beginning-of-text token; the library decodes the same."""
    ids = kind.encode(TEXT)
    raw = b"".join(map(kind.ours.raw, ids))
    whole = kind.theirs.decode(ids, skip_special_tokens=False)
    assert raw.decode().removeprefix(" " if kind.name == "wordpiece" else "") == whole == kind.ours.decode(ids)
    if kind.name != "wordpiece":
        assert raw.decode().removeprefix("<s>").removeprefix(" ") == TEXT
    tokens = kind.ours.tokens(ids)
    assert "�" in "".join(tokens) or kind.name == "wordpiece"
    assert "".join(tokens).startswith(raw.decode().split("—")[0])


def test_a_word_keeps_its_space(kind: Kind) -> None:
    """One id has one text, wherever it stands."""
    ids = kind.encode("to Mary to Mary")
    assert kind.ours.tokens(ids)[-3:] == [" Mary", " to", " Mary"]
    assert ids[-3] == ids[-1]
    first = "".join(kind.ours.tokens(ids)[1:-3])
    assert first == ("to" if kind.name in ("byte_level", "metaspace_never") else " to")


def test_every_token_is_told_alone_as_it_is_beside_others(kind: Kind) -> None:
    """Each id between two words, by the library, is those words and the token's own text."""
    left, right = kind.encode("to to")[-1], kind.encode("to Mary")[-1]
    for token in range(kind.n_tokens):
        whole = kind.theirs.decode([left, token, right], skip_special_tokens=False)
        ours = kind.theirs.decode([left]).encode() + kind.ours.raw(token) + b" Mary"
        assert ours.decode(errors="replace") == whole


def test_bytes_of_half_characters() -> None:
    byte_of = {"Ã": 0xC3, "Ģ": 0x80, "Ġ": 0x20, "Ċ": 0x0A, "!": 0x21, "ÿ": 0xFF}  # GPT-2's table
    assert {letter: BYTE_OF[letter] for letter in byte_of} == byte_of
    assert sorted(BYTE_OF.values()) == list(range(256))


def test_an_added_token_keeps_its_accents(tmp_path: Path) -> None:
    """The library's byte-level decoder takes them for bytes."""
    folder = tokenizer_folder("byte_level", tmp_path)
    file = json.loads((folder / "tokenizer.json").read_text())
    entry = {**file["added_tokens"][-1], "id": 1300, "content": "<résumé>"}
    file["added_tokens"].append(entry)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    ours = Tokenizer(folder, VOCAB_SIZE)
    (last,) = ours.encode(Input("<résumé>"))[1:]
    assert ours.token(last) == "<résumé>"


def test_cleaning_of_spaces_is_never_applied(kind: Kind, tmp_path: Path) -> None:
    """`clean_up_tokenization_spaces` takes away spaces that the model wrote."""
    folder = tokenizer_folder(kind.name, tmp_path, clean_up_tokenization_spaces=True)
    ours = Tokenizer(folder, VOCAB_SIZE)
    ids = ours.encode(Input("Mary , John"))
    assert ours.decode(ids) == kind.ours.decode(ids)
    assert (" ," in ours.decode(ids)) == (kind.name != "wordpiece"), "WordPiece's own decoder cleans each token"


def test_truncation_and_padding_in_the_file_are_ignored(kind: Kind, tmp_path: Path) -> None:
    file = json.loads((kind.folder / "tokenizer.json").read_text())
    file["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file["padding"] = {
        "strategy": {"Fixed": 16},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }
    folder = tokenizer_folder(kind.name, tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(file))
    assert Tokenizer(folder, VOCAB_SIZE).encode(Input(TEXT)) == kind.encode(TEXT)


SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "▁", "cleanup": True},  # repeats count once
        {
            "type": "Sequence",
            "decoders": [
                *(SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}),
                {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "},
            ],
        },
    ],
)
def test_a_decoder_that_cannot_be_followed_is_refused(tmp_path: Path, decoder: dict[str, Any]) -> None:
    """What a token stands for hangs on its neighbours."""
    folder = tokenizer_folder("llama2", tmp_path)
    file = json.loads((folder / "tokenizer.json").read_text())
    file["decoder"] = decoder
    (folder / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(InvalidArgument, match=r"decoder .* otherwise beside others"):
        read_codec(folder)


def test_special_tokens_are_the_librarys(kind: Kind) -> None:
    codec = read_codec(kind.folder)
    assert isinstance(codec, FastCodec)
    for token in range(kind.n_tokens):
        hidden = not kind.theirs.decode([token, token], skip_special_tokens=True)
        assert hidden == (token in codec.special_ids) or not codec.raw(token).strip()
