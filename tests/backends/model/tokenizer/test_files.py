"""Which tokenizer a folder holds: never another than the checkpoint's own."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library, decoders, models, pre_tokenizers

from probewire.backends.model.tokenizer.files import read_codec
from probewire.protos.errors import InvalidArgument
from tests.tiny_tokenizers import sentence_piece_model, tokenizer_folder


def _write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "named", ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "Unheard"]
)
@pytest.mark.parametrize("kind", ["byte_level", "llama2", "metaspace_never", "wordpiece"])
def test_a_tokenizer_json_is_taken_as_it_is(tmp_path: Path, kind: str, named: str) -> None:
    """Classes of transformers rebuild it from its vocabulary: another first word, no rule for digits."""
    folder = tokenizer_folder(kind, tmp_path, tokenizer_class=named)
    _write(folder, config__json={"model_type": "llama"})
    library: Any = Library.from_file(str(folder / "tokenizer.json"))
    codec = read_codec(folder)
    for text in ("When Mary and John went", " 1732 years", "<s>Mary", "a\n\nb   c", "don't 世界"):
        assert codec.encode(text) == library.encode(text, add_special_tokens=False).ids
        assert [*codec.prefix, *codec.encode(text), *codec.suffix] == library.encode(text).ids


def test_digits_stay_apart_under_gpt2s_class(tmp_path: Path) -> None:
    """SmolLM's own files: a rule for digits, and a class that knows none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made: Any = Library(models.BPE({**{c: i for i, c in enumerate(alphabet)}, "12": 256}, [("1", "2")]))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.save(str(tmp_path / "tokenizer.json"))
    _write(tmp_path, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"}, config__json={"model_type": "llama"})
    assert read_codec(tmp_path).encode("12") == [alphabet.index("1"), alphabet.index("2")]


def test_a_tokenizer_json_stands_before_a_tokenizer_model(tmp_path: Path) -> None:
    folder = tokenizer_folder("llama2", tmp_path)
    expected = read_codec(folder).encode("When Mary")
    (folder / "tokenizer.model").write_bytes(sentence_piece_model(model_type="unigram"))
    assert read_codec(folder).encode("When Mary") == expected


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["code.MyTokenizer", None]}, ["code.MyTokenizer", None]])
def test_a_tokenizer_that_is_code_is_refused(tmp_path: Path, auto_map: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece_model(model_type="bpe"))
    _write(tmp_path, tokenizer_config__json={"auto_map": auto_map, "tokenizer_class": "MyTokenizer"})
    with pytest.raises(InvalidArgument, match=r"it is code \(.*code.MyTokenizer.*never run; copy the tokenizer.json"):
        read_codec(tmp_path)


@pytest.mark.parametrize("named", ["XGLMTokenizer", "CamembertTokenizer", "T5Tokenizer"])
def test_a_class_that_numbers_pieces_otherwise_is_refused(tmp_path: Path, named: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece_model(model_type="unigram"))
    _write(tmp_path, tokenizer_config__json={"tokenizer_class": named})
    with pytest.raises(InvalidArgument, match=rf"the class {named}, which may number its pieces otherwise"):
        read_codec(tmp_path)


def test_the_tiktoken_format_is_refused(tmp_path: Path) -> None:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    _write(tmp_path, config__json={"model_type": "llama"})
    with pytest.raises(InvalidArgument, match=r"tiktoken format.*convert_tiktoken_to_fast"):
        read_codec(tmp_path)


@pytest.mark.parametrize("content", ["", "no model at all", "\x0a\x05hello"])
def test_a_broken_model_file_is_refused(tmp_path: Path, content: str) -> None:
    _write(tmp_path, tokenizer__model=content)
    with pytest.raises(InvalidArgument, match=r"tokenizer in .* cannot be read"):
        read_codec(tmp_path)


@pytest.mark.parametrize("content", [{}, {"model": 3}, {"version": "1.0", "model": {"type": "Nonesuch"}}])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: Any) -> None:
    _write(tmp_path, tokenizer__json=content)
    with pytest.raises(InvalidArgument, match=r"tokenizer in .* cannot be read .*; copy the tokenizer.json"):
        read_codec(tmp_path)


def test_a_vocabulary_without_rules_for_words_is_refused(tmp_path: Path) -> None:
    """A class that transformers does not know, and an architecture without one of its own."""
    folder = _gpt2_files(tmp_path)
    _write(folder, tokenizer_config__json={"tokenizer_class": "Unheard"}, config__json={"model_type": "stablelm"})
    with pytest.raises(InvalidArgument, match=r"cannot be read .*; copy the tokenizer.json"):
        read_codec(folder)


def test_a_vocabulary_with_a_class_that_has_rules_is_taken(tmp_path: Path) -> None:
    folder = _gpt2_files(tmp_path)
    _write(folder, tokenizer_config__json={"tokenizer_class": "GPT2Tokenizer"}, config__json={"model_type": "gpt2"})
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert read_codec(folder).encode("he") == [vocabulary["he"]]
    assert read_codec(folder).encode("h e") == [vocabulary["h"], vocabulary["Ġ"], vocabulary["e"]]


def _gpt2_files(folder: Path) -> Path:
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|endoftext|>"]
    return _write(folder, vocab__json={piece: i for i, piece in enumerate(pieces)}, merges__txt="#version: 0.2\nh e\n")


PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
RANKED = [bytes([byte]) for byte in range(256)] + [b"he", b" t", b"in", b" the", b"ing", b"aa", b" a", b"th", b"the"]


def _tekken(folder: Path, specials: list[str]) -> Path:
    vocab = [{"rank": i, "token_bytes": base64.b64encode(b).decode(), "token_str": None} for i, b in enumerate(RANKED)]
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(RANKED),
        "default_vocab_size": len(RANKED) + 10,
        "default_num_special_tokens": 10,
        "version": "v7",
    }
    special = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(specials)]
    return _write(folder, tekken__json={"config": config, "vocab": vocab, "special_tokens": special})


def _by_rank(word: bytes) -> list[int]:
    """What tiktoken does: the pair of least rank is joined, until none is known."""
    parts, rank = [bytes([byte]) for byte in word], {piece: i for i, piece in enumerate(RANKED)}
    while True:
        pairs = [(rank[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in rank]
        if not pairs:
            return [10 + rank[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_a_tekken_file_is_read_by_ranks(tmp_path: Path) -> None:
    """Against the definition, with its pattern written for ASCII; texts begin with <s>."""
    codec = read_codec(_tekken(tmp_path, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]))
    assert (codec.prefix, codec.suffix, codec.bos_id, codec.eos_id) == ((1,), (), 1, 2)
    pattern = re.compile(r"[^\r\na-zA-Z0-9]?[a-zA-Z]+|[0-9]| ?[^\sa-zA-Z0-9]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choice(["the", "ing", "a", "aa", "aaa", " ", "  ", "\n", "12", "-", "t"]) for _ in range(9))
        assert codec.encode(text) == [i for word in pattern.findall(text) for i in _by_rank(word.encode())]
    assert codec.encode("[INST]the[/INST]") == [3, 10 + RANKED.index(b"the"), 4]
    assert codec.raw(10 + 0xE2) == b"\xe2"
