"""Log-probabilities in OpenAI's shapes: bytes that join to the text, and no two candidates that read alike."""

from __future__ import annotations

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.model import Input, Token
from probewire.protos.tokens import TokenLogprob
from probewire.server.api.openai.logprobs import ChatLogprobs, TextLogprobs
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
