"""Log-probabilities in OpenAI's shapes: bytes that join to the text, and no two candidates that read alike."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.model import Finished, Input, InputStarted, Started, Token, Tokenized, Usage
from probewire.protos.tokens import TokenLogprob
from probewire.server.api.http.answer import Answer
from probewire.server.api.openai.answer import whole_answer
from probewire.server.api.openai.echo import Echo, Reading
from probewire.server.api.openai.logprobs import ChatLogprobs, TextLogprobs
from probewire.server.api.openai.request import text_completion
from probewire.server.worker.output.text import TextStream
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder

TEXT = " Mary 😀 café"


@pytest.fixture(scope="module", params=["byte_level", "llama2", "metaspace_first"])
def tokens(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Token]:
    """A generation of the text and an end, each token with its neighbour by number as the second likeliest."""
    ours = Tokenizer(tokenizer_folder(request.param, tmp_path_factory.mktemp("kind")), VOCAB_SIZE)
    prompt = ours.encode(Input("\n"))
    ids = [*ours.encode(Input("\n" + TEXT))[len(prompt) :], 2]
    stream = TextStream(ours, (), prompt)

    def told(token: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token, ours.token(token), logprob, ours.text_bytes(token))

    return [Token("input", n, i, stream.add(i), -0.5, (told(i, -0.5), told(i + 1, -1.5))) for n, i in enumerate(ids)]


def test_a_chats_bytes_join_to_the_text(tokens: list[Token]) -> None:
    content = ChatLogprobs(2).of(tokens)["content"]
    assert "".join(token.text for token in tokens) == TEXT
    assert b"".join(bytes(entry["bytes"] or ()) for entry in content).decode() == TEXT
    assert (content[-1]["token"], content[-1]["bytes"]) == ("</s>", None)
    assert (content[0]["token"], bytes(content[0]["bytes"])) == (" Mary", b" Mary")
    halves = [entry["token"] for entry in content if "\\x" in entry["token"]]
    assert halves == ["\\xf0", "\\x9f", "\\x98", "\\x80", "\\xc3", "\\xa9"]
    assert [entry["top_logprobs"][1]["token"] for entry in content if entry["token"] == "\\x9f"] == ["\\xa0"]


def test_a_completions_tokens_are_told_apart(tokens: list[Token]) -> None:
    told = TextLogprobs().of(tokens)
    assert "bytes:\\xf0" in told["tokens"]
    assert all(len(top) == 2 for top in told["top_logprobs"])
    assert not any("\ufffd" in text for top in told["top_logprobs"] for text in top)
    assert told["text_offset"][-1] == len(TEXT)


def test_a_token_that_was_told_without_candidates_has_its_text(tokens: list[Token]) -> None:
    (entry,) = ChatLogprobs(0).of([Token("input", 0, 7, "ab", -0.5)])["content"]
    assert (entry["token"], entry["bytes"], entry["top_logprobs"]) == ("ab", [97, 98], [])


def test_of_tokens_that_read_alike_the_likelier_ones_stays() -> None:
    """A sampled token whose text is that of a likelier one must not look like the best: a harness compares floats."""
    likelier, own = TokenLogprob(7, " a", -0.25, b" a"), TokenLogprob(8, " a", -2.0, b" a")
    [top] = TextLogprobs().of([Token("input", 0, 8, " a", -2.0, (likelier, own))])["top_logprobs"]
    assert top == {" a": -0.25}
    [top] = TextLogprobs().of([Token("input", 0, 7, " a", -0.25, (likelier, own))])["top_logprobs"]
    assert top == {" a": -0.25}


def test_an_echoed_prompt_keeps_the_likelier_one_too() -> None:
    """Ids 8 and 9 both read "x"; offsets count characters of the text that was sent, without the token before it."""
    made = text_completion({"prompt": "xx", "echo": True, "max_tokens": 0, "logprobs": 1})
    started = Started(
        "r",
        "m",
        "f00d",
        "fake",
        "cpu",
        "float32",
        "eager",
        {},
        (),
        (InputStarted("input", (1, 8, 9), ("<s>", "x", "x")),),
    )
    finished = Finished("input", "run", Usage(3, 0))
    rows = {("input", ""): [-3.0, -0.5], ("input", "value"): [[-1.0], [-0.5]], ("input", "index"): [[9], [9]]}
    read = Reading(
        Answer(started, (), (), (finished,)), {key: np.float32(value) for key, value in rows.items()}, (1, 8, 9)
    )
    pieces = Tokenized((1, 8, 9), ("<s>", "x", "x"), "<s>xx", (b"<s>", b"x", b"x"))
    [choice] = whole_answer(made, read.rest, Echo(read, made, pieces))["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("xx", "length")
    assert choice["logprobs"] == {
        "tokens": ["<s>", "x", "x"],
        "token_logprobs": [None, -3.0, -0.5],
        "top_logprobs": [None, {"x": -1.0}, {"x": -0.5}],
        "text_offset": [0, 0, 1],
    }
