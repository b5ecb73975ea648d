"""A tokenizer.model against sentencepiece itself, on random texts; tiny models trained here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, strategies as st

from probewire.backends.model.tokenizer import StreamDecoder, Tokenizer
from probewire.protos.model import Input, Message
from tests.tiny_tokenizers import CORPUS, sentence_piece_model

MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe"},
    "unigram": {"model_type": "unigram"},
    "gemma": {"model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": "\n\n,<b>"},
    "t5": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "no_bytes": {"model_type": "bpe", "byte_fallback": False},
}
WORDS = st.sampled_from(sorted({word for text in CORPUS[:40] for word in text.split()}))
PARTS = st.one_of(
    WORDS, st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "▁", "<b>", "ﬁ", "世界", "😀", "e\u0301"]), st.text()
)
TEXTS = st.lists(PARTS, min_size=1, max_size=12).map("".join).filter(lambda text: not _names_special(text))


def _names_special(text: str) -> bool:
    return any(name in text for name in ("<s>", "</s>", "<unk>")) or any(0xD800 <= ord(c) < 0xE000 for c in text)


@cache
def _own(name: str) -> Any:
    made: Any = sentencepiece.SentencePieceProcessor
    return made(model_proto=sentence_piece_model(**MODELS[name]))


def _folder(path: Path, name: str = "bpe", config: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True, parents=True)
    (path / "tokenizer.model").write_bytes(sentence_piece_model(**MODELS[name]))
    (path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = _folder(tmp_path_factory.mktemp("pieces"), request.param)
    return Tokenizer(folder, 2000), _own(request.param)


@given(text=TEXTS)
def test_ids_are_sentencepieces(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, own = both
    expected = own.encode(text)
    if expected:
        assert ours.encode(Input(text)) == [own.bos_id(), *expected]


@given(text=TEXTS)
def test_texts_are_sentencepieces(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, own = both
    ids = own.encode(text)
    if own.unk_id() in ids or not ids:
        return  # its " ⁇ " for what is unknown is no text of the model's
    assert ours.decode(ids) == own.decode(ids)
    first, *rest = ids
    decoder = StreamDecoder(ours, [first])
    streamed = "".join(map(decoder.add, rest)) + decoder.flush()
    assert (ours.decode([first]).rstrip("\ufffd") + streamed).replace("\ufffd", "") == own.decode(ids).replace(
        "\ufffd", ""
    )


NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("named", ["LlamaTokenizer", "LlamaTokenizerFast", None])
@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("add_eos", [True, False])
def test_the_config_says_what_goes_around(
    tmp_path: Path, named: str | None, add_bos: bool | None, add_eos: bool
) -> None:
    config: dict[str, Any] = {**NAMED, "add_eos_token": add_eos}
    config |= {} if named is None else {"tokenizer_class": named}
    config |= {} if add_bos is None else {"add_bos_token": add_bos}
    ours = Tokenizer(_folder(tmp_path, config=config), 2000)
    text = "  The capital of France\n is"
    expected = [1] * (add_bos is not False) + _own("bpe").encode(text) + [2] * add_eos
    assert ours.encode(Input(text)) == expected
    assert ours.encode(Input("<s>" + text))[:2] != [1, 1], "begun already"


@pytest.mark.parametrize("legacy", [True, False, None])
def test_text_behind_a_special_token_is_spaced_by_the_older_rule_alone(tmp_path: Path, legacy: bool | None) -> None:
    """transformers PR 24565: a space is put before a text, and by the older rule behind every special token too."""
    config: dict[str, Any] = {**NAMED, **({} if legacy is None else {"legacy": legacy})}
    ours, own = Tokenizer(_folder(tmp_path, config=config), 2000), _own("bpe")
    spaced, plain = own.encode("Mary"), own.encode("\nMary")[2:]
    assert own.encode("\nMary")[:2] == own.encode("\n")
    assert spaced != plain
    behind = plain if legacy is False else spaced
    assert ours.encode(Input("Mary</s>Mary")) == [1, *spaced, 2, *behind]
    assert ours.encode(Input("<s>Mary")) == [1, *behind]
    assert ours.encode(Input("<s> Mary")) == [1, *(own.encode(" Mary") if legacy is not False else spaced)]


def test_added_tokens_and_the_template_are_the_configs(tmp_path: Path) -> None:
    added = {"content": "<|im_end|>", "special": True, "rstrip": True, "lstrip": False, "normalized": False}
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    n_pieces = _own("bpe").get_piece_size()
    config = {
        **NAMED,
        "legacy": False,
        "added_tokens_decoder": {str(n_pieces): {**added, "single_word": False}},
        "chat_template": template,
    }
    ours, own = Tokenizer(_folder(tmp_path, config=config), 2000), _own("bpe")
    ids = ours.encode(Input(messages=(Message("user", "the store"), Message("assistant", "Mary"))))
    inside = own.encode("\nthe store")[2:]
    assert ids == [1, *inside, n_pieces, *own.encode("\nMary")[2:], n_pieces]
    assert ours.token(n_pieces) == "<|im_end|>"
    assert ours.end_ids == (2, n_pieces)
    assert ours.encode(Input("to<|im_end|>  \n the")) == ours.encode(Input("to<|im_end|>the")), "it swallows spaces"
