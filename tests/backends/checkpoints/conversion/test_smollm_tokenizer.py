"""The rebuilt tokenizer: digits one by one, bytes as GPT-2 maps them, special tokens by their ids."""

import json

import pytest
from transformers import AutoTokenizer

from probewire.backends.checkpoints.conversion.gguf_header import read_header
from probewire.backends.checkpoints.conversion.gguf_tokenizer import tokenizer_files


@pytest.fixture
def folder(tiny_gguf, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf.data)
    for name, content in tokenizer_files(read_header(path)).items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_digits_stay_apart_even_where_a_merge_joins_them(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("the 12 the") == ["t", "he", "Ġ", "1", "2", "Ġthe"]


@pytest.mark.parametrize("text", ["the cat", "naïve 東京 🙂\n\ttab", " leading", "<|im_start|>user\nhi<|im_end|>\n"])
def test_round_trip(folder, text):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("<|im_start|>the<|im_end|>").input_ids
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 4)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (
        1,
        2,
        2,
        0,
    )
    assert tokenizer("the").input_ids == tokenizer("the", add_special_tokens=False).input_ids
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert chat == "the"
