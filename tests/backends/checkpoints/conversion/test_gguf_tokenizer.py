"""Tokenizers out of GGUF files cut text as the libraries that they come from do; others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from probewire.backends.checkpoints.conversion.gguf import write_gguf_folder
from probewire.protos.errors import InvalidArgument
from tests.backends.checkpoints.conversion.gguf_files import MODELS, PLAIN_VOCABULARY, tiny_model, write_gguf
from tests.tiny_tokenizers import CORPUS, sentence_piece_model

TEXTS = [*CORPUS[::40], " two  spaces", "naïve 東京 🙂\n\ttab", "", "1234 and 5,6", "the\x00end", "word"]


def _folder(tmp_path: Path, name: str, vocabulary: dict[str, Any]) -> Any:
    model = tiny_model(name)
    model.resize_token_embeddings(max(300, len(vocabulary["tokens"])))
    source = write_gguf(tmp_path / "m.gguf", model, MODELS[name][0], vocabulary=vocabulary)
    write_gguf_folder(source, tmp_path / "out")
    tokenizers: Any = PreTrainedTokenizerFast  # as probewire loads it: AutoTokenizer takes the rules of a class instead
    return tokenizers.from_pretrained(tmp_path / "out")


def _sentencepiece(**options: Any) -> tuple[Any, dict[str, Any]]:
    """A trained model's own processor, and its vocabulary as llama.cpp writes it."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=sentence_piece_model("bpe", **options))
    kinds = [theirs.is_unknown, theirs.is_control, theirs.is_byte]
    n = theirs.get_piece_size()
    types = [next((kind for kind, holds in zip((2, 3, 6), kinds, strict=True) if holds(i)), 1) for i in range(n)]
    return theirs, {
        "model": "llama",
        "pre": "default",
        "tokens": [theirs.id_to_piece(i) for i in range(n)],
        "scores": [theirs.get_score(i) for i in range(n)],
        "token_type": types,
        "bos_token_id": theirs.bos_id(),
        "eos_token_id": theirs.eos_id(),
        "unknown_token_id": theirs.unk_id(),
    }


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_sentencepiece(tmp_path: Path, name: str) -> None:
    """Llama's begin a text with a space, Gemma's do not."""
    theirs, vocabulary = _sentencepiece(add_dummy_prefix=name == "llama")
    vocabulary["add_space_prefix"] = name == "llama"
    tokenizer = _folder(tmp_path, name, vocabulary)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [theirs.bos_id(), *theirs.encode(text)], text
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text)), text


def test_a_space_that_is_not_put_before_a_text(tmp_path: Path) -> None:
    """Llama-architecture models with a vocabulary that begins texts as they are."""
    theirs, vocabulary = _sentencepiece(add_dummy_prefix=False)
    tokenizer = _folder(tmp_path, "llama", {**vocabulary, "add_space_prefix": False, "add_bos_token": False})
    for text in TEXTS:
        assert tokenizer(text).input_ids == theirs.encode(text), text


def test_llama_3_takes_a_word_whole_where_it_is_a_token(tmp_path: Path) -> None:
    """Its vocabulary has words that no chain of merges gives."""
    tokens = [*PLAIN_VOCABULARY["tokens"], "word"]
    vocabulary = {
        **PLAIN_VOCABULARY,
        "pre": "llama-bpe",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
    }
    tokenizer = _folder(tmp_path, "qwen2", vocabulary)
    assert tokenizer.convert_ids_to_tokens(tokenizer("word").input_ids) == ["<bos>", "word"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("12345").input_ids) == ["<bos>", *"12345"]


@pytest.mark.parametrize(
    ("model", "pre"), [("gpt2", "default"), ("gpt2", "starcoder"), ("bert", "default"), ("rwkv", "x")]
)
def test_what_would_be_cut_otherwise_is_refused(tmp_path: Path, model: str, pre: str) -> None:
    with pytest.raises(
        InvalidArgument, match=f"type '{model}' that splits as '{pre}', which cannot be rebuilt exactly"
    ):
        _folder(tmp_path, "qwen2", {**PLAIN_VOCABULARY, "model": model, "pre": pre})


def test_a_chat_template_comes_along(tmp_path: Path) -> None:
    template = "{% for m in messages %}<bos>{{ m['content'] }}<eos>{% endfor %}"
    tokenizer = _folder(tmp_path, "qwen2", {**PLAIN_VOCABULARY, "chat_template": template})
    ids = tokenizer.apply_chat_template([{"role": "user", "content": " the"}], return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "Ġthe", "<eos>"]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == template
