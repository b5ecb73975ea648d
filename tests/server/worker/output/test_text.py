"""Sampled tokens as text: stop strings in it, and those that name tokens which it leaves out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.model import Input
from probewire.server.worker.output.text import TextStream
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder

WRITTEN = " Mary went<|im_start|> to the<|im_end|> store\n<|im_start|> user"


@pytest.fixture(scope="module", params=["byte_level", "llama2", "metaspace_first"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tokenizer_folder(request.param, tmp_path_factory.mktemp("kind")), VOCAB_SIZE)


def _ids(tokenizer: Tokenizer) -> list[int]:
    """Each part as it is behind a line break, where no kind puts a space of its own."""
    found: list[int] = []
    for part in re.split(r"(<.*?>)", WRITTEN):
        before, whole = (tokenizer.encode(Input(text)) for text in ("\n", "\n" + part))
        found += whole[-1:] if part.startswith("<") else whole[len(before) :]
    return found


def _written(tokenizer: Tokenizer, *stop: str) -> tuple[str, bool, int]:
    """The text given out, whether it stopped, and after how many tokens."""
    stream, text, ids = TextStream(tokenizer, stop, tokenizer.encode(Input("\n"))), "", _ids(tokenizer)
    for n, token in enumerate(ids, 1):
        text += stream.add(token)
        if stream.stopped:
            return text, True, n
    return text + stream.flush(), stream.stopped, len(ids)


SHOWN = WRITTEN.replace("<|im_start|>", "").replace("<|im_end|>", "")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), SHOWN),
        (("<|im_start|>",), " Mary went"),
        (("<|im_end|>",), " Mary went to the"),
        (("went<|im_start|> to",), " Mary "),
        (("\n<|im_start|> user",), " Mary went to the store"),
        (("\n<|im_start|> system",), SHOWN),  # begun, and not ended
        (("<|im_end|>", "store"), " Mary went to the"),
        (("nt to",), " Mary we"),  # as the text reads, over what it leaves out
        (("im_start",), SHOWN),  # a part of a special token is in no text
        (("</s>", "store"), " Mary went to the "),
        (("never",), SHOWN),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, stop: tuple[str, ...], expected: str) -> None:
    text, stopped, _ = _written(tokenizer, *stop)
    assert (text, stopped) == (expected, expected != SHOWN)


def test_it_ends_with_the_special_token_itself(tokenizer: Tokenizer) -> None:
    at = tokenizer.tokens(_ids(tokenizer)).index("<|im_start|>")
    assert _written(tokenizer, "<|im_start|>")[2] == at + 1


def test_a_special_token_spelt_out_as_text_stops_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tokenizer_folder("byte_level", tmp_path), VOCAB_SIZE)
    spelt = [i for char in "a<|im_start|>b" for i in tokenizer.encode(Input(char))[1:]]
    stream = TextStream(tokenizer, ("<|im_start|>",))
    assert "".join(stream.add(i) for i in spelt[:-1]) == "a"
    assert stream.stopped
