"""A tiny real model with other people's tokenizers: what comes out is what the model wrote, on both backends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tokenizers
from fake_model import FakeOperations
from rest_caller import Caller

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Logit, steer
from probewire.clients.requests.prompts import Prompt
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input, Message, TokenizeRequest
from probewire.protos.spec import Hook
from probewire.protos.tokens import EndToken
from probewire.protos.wire.codec import to_json
from probewire.server.api.http.app import create_app
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import CHATML, SPECIAL, VOCAB_SIZE, tokenizer_folder

PROMPT = "When Mary and John went to the store"
ENGINE = Limits(n_slots=2, context_tokens=256, cache_tokens=512, chunk_tokens=16)
FACES = [("torch", "llama2"), ("mlx", "llama2"), ("torch", "metaspace_first"), ("torch", "byte_level")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stale = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), **stale)


@pytest.fixture(scope="module", params=FACES, ids="-".join)
def folder(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dressed") / "-".join(request.param)
    shutil.copytree(checkpoint, folder)
    return tokenizer_folder(request.param[1], folder, eos_token="<|im_end|>", chat_template="{{ bos_token }}" + CHATML)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    backend = folder.name.split("-")[0]
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", backend=backend, engine=ENGINE), folder)
    yield made
    made.close()


@pytest.fixture
def client(model: LocalModel) -> Client:
    return Client(service=InProcessService(model))


@pytest.fixture(scope="module")
def library(folder: Path) -> Any:
    made: Any = tokenizers.Tokenizer
    return made.from_file(str(folder / "tokenizer.json"))


def _writing(
    client: Client, text: str, end: tuple[int, ...] = (), *, prompt: Prompt = PROMPT
) -> tuple[list[Hook], list[int]]:
    """Hooks that make the model write a text behind a prompt, and its ids."""
    n_prompt = len(client.tokenize(prompt).token_ids)
    before, whole = (client.tokenize(part).token_ids for part in ("\n", "\n" + text))
    assert whole[: len(before)] == before
    ids = [*whole[len(before) :], *end]
    wanted = np.eye(VOCAB_SIZE, dtype=np.float32)[ids] * 1e4
    return [steer("logits", row, positions=[n_prompt - 1 + i]) for i, row in enumerate(wanted)], ids


TEXT = " Paris. It is a café 😀 of  Mary"


def test_the_text_is_what_the_model_wrote(client: Client, library: Any) -> None:
    hooks, ids = _writing(client, TEXT)
    made = client.generate(PROMPT, hooks=hooks, max_new_tokens=len(ids), logprobs=0)
    assert made.only.token_ids[-len(ids) :] == tuple(ids)
    assert made.text == TEXT
    before = library.decode(list(made.only.prompt_ids), skip_special_tokens=False)
    assert before + made.text == library.decode(list(made.only.token_ids), skip_special_tokens=False)
    assert "".join(step.text for step in client.stream(PROMPT, hooks=hooks, max_new_tokens=len(ids))) == TEXT
    assert b"".join(top.raw for token in made.only.new for top in token.top).decode() == TEXT
    whole = [top.text for token in made.only.new for top in token.top]
    assert "".join(whole).startswith(" Paris. It is a caf")
    assert "".join(made.only.prompt_tokens).removeprefix("<s>").lstrip() == PROMPT


def test_a_token_is_named_with_its_space(client: Client) -> None:
    mary = client.token(" Mary")
    assert client.tokenize("to Mary").token_ids[-1] == mary
    assert client.tokenize("to Mary").tokens[-1] == " Mary"
    with pytest.raises(InvalidArgument, match=r"'Mary' is .*, not one; a leading space often matters: ' Mary'"):
        client.token("Mary")
    with pytest.raises(InvalidArgument, match="not one"):
        client.token(" Mary John")


def test_a_stale_end_of_turn_does_not_run_on(client: Client) -> None:
    """Both configs say 0; the tokenizer and its template say <|im_end|>."""
    ends = client.describe().ends
    assert ends == (EndToken(0, "<unk>"), EndToken(4, "<|im_end|>"))
    hooks, ids = _writing(client, " Mary", (SPECIAL.index("<|im_end|>"),))
    made = client.generate(PROMPT, hooks=hooks, max_new_tokens=20)
    assert (made.text, made.finish_reason, len(made.only.new)) == (" Mary", "eos", len(ids))
    made = client.generate(PROMPT, hooks=hooks, max_new_tokens=len(ids) + 1, ignore_eos=True)
    assert made.finish_reason == "length"


def test_a_special_token_stops(client: Client) -> None:
    hooks, ids = _writing(client, " Mary", (SPECIAL.index("<|im_start|>"),))
    made = client.generate(PROMPT, hooks=hooks, max_new_tokens=20, stop="<|im_start|>")
    assert (made.text, made.finish_reason, len(made.only.new)) == (" Mary", "stop", len(ids))


def test_a_rendered_chat_is_the_chat(client: Client) -> None:
    """Logits of a text that the template rendered are those of the messages."""
    rendered = f"<s><|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    asked = {"text": Input(rendered), "messages": Input(messages=(Message("user", PROMPT),))}
    run = client.run(asked, capture=["logits"])
    text, messages = (run.inputs[name]["logits"] for name in asked)
    assert text.shape == messages.shape
    assert np.abs(text - messages).max() < 1e-5


def test_nearly_no_temperature_is_greedy(client: Client) -> None:
    greedy = client.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    for temperature in (1e-45, 1e-38, 1e-37, 1e-9):
        made = client.generate(PROMPT, max_new_tokens=12, ignore_eos=True, temperature=temperature, seed=3)
        assert made.token_ids == greedy.token_ids


def test_a_prompt_of_a_million_tokens_is_refused_by_its_length(client: Client, model: LocalModel) -> None:
    long = Input(" Mary" * 1_000_000)
    refused = "has 5,000,000 characters, which are .* tokens or more; at most 256 are allowed"
    with mock.patch.object(model.tokenizer.codec, "encode", side_effect=AssertionError("it was tokenised")):
        for ask in (
            lambda: client.generate(long, max_new_tokens=1),
            lambda: client.run(long),
            lambda: client.gradients(long, Logit(3), at=["resid_post.0"]),
            lambda: client.sweep(long, Logit(3), [[]]),
            lambda: model.tokenize(TokenizeRequest(long, at_most=256)),
        ):
            with pytest.raises(InvalidArgument, match=refused):
                ask()


def test_every_http_face_refuses_it_by_its_length(model: LocalModel) -> None:
    call = Caller(create_app(LocalOperations(model), version="test", max_body_bytes=1 << 24), FakeOperations())
    long = " Mary" * 200_000
    chat = {"messages": [{"role": "user", "content": long}]}
    with mock.patch.object(model.tokenizer.codec, "encode", side_effect=AssertionError("it was tokenised")):
        for path, body in (
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "max_tokens": 1}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/generate", {"inputs": [{"text": long}]}),
            ("/v1/chat/completions/with_activations", {**chat, "max_tokens": 1}),
        ):
            answer = call.post(path, body)
            assert answer.status_code == 422, (path, answer.text)
            assert "tokens or more; at most 256 are allowed" in answer.text
    counted = call.post("/v1/tokenize", {"input": {"text": " Mary" * 300}, "at_most": 5})
    assert counted.status_code == 422
    assert call.post("/v1/tokenize", {"input": {"text": " Mary" * 300}}).status_code == 200


def test_a_chats_logprobs_have_the_bytes_of_an_emoji(model: LocalModel, client: Client) -> None:
    call = Caller(create_app(LocalOperations(model), version="test", max_body_bytes=1 << 24), FakeOperations())
    hooks, _ = _writing(client, " a 😀", (SPECIAL.index("<|im_end|>"),))
    body = {"prompt": PROMPT, "max_tokens": 20, "temperature": 0, "probewire": {"hooks": [to_json(h) for h in hooks]}}
    told = call.post("/v1/completions", {**body, "logprobs": 0}).json()["choices"][0]
    assert told["text"] == " a 😀"
    assert "".join(told["logprobs"]["tokens"]).replace("bytes:", "").endswith("\\xf0\\x9f\\x98\\x80<|im_end|>")
    messages = [{"role": "user", "content": PROMPT}]
    hooks, ids = _writing(client, " a 😀", (SPECIAL.index("<|im_end|>"),), prompt=messages)
    body = {"messages": messages, "max_tokens": 20, "temperature": 0, "logprobs": True, "top_logprobs": 0}
    body["probewire"] = {"hooks": [to_json(h) for h in hooks]}
    choice = call.post("/v1/chat/completions", body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert (choice["message"]["content"], len(content)) == (" a 😀", len(ids))
    assert b"".join(bytes(entry["bytes"] or ()) for entry in content).decode() == " a 😀"
    assert content[-1]["bytes"] is None
