"""OpenAI's own package against the real server: nothing is changed but `base_url`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import openai
import pytest

from probewire.clients import Client, Message
from probewire.protos.tokens import TokenLogprob
from tests.apis.serving import Served

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
PROMPT = "When Mary and John"


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ours(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}") as client:
        yield client


def test_models(client: openai.OpenAI, model: str) -> None:
    assert [found.id for found in client.models.list()] == ["torch", "mlx"]
    found = client.models.retrieve(model)
    assert (found.id, found.object, found.owned_by) == (model, "model", "probewire")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-0' is loaded; loaded: torch, mlx"):
        client.models.retrieve("gpt-0")


def test_a_chat_is_our_own_generation(client: openai.OpenAI, ours: Client, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_completion_tokens=6,
        temperature=0.8,
        seed=3,
        logprobs=True,
        top_logprobs=2,
    )
    expected = ours.generate(
        [Message("user", "Hello")], model=model, max_new_tokens=6, temperature=0.8, seed=3, logprobs=2
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert (choice.index, choice.finish_reason) == (0, "length")
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.usage is not None
    usage = (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
    assert usage == (expected.usage.prompt_tokens, 6, expected.usage.prompt_tokens + 6)
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert [entry.logprob for entry in entries] == [token.logprob for token in expected.only.new]
    tops = [[(top.token, top.logprob) for top in entry.top_logprobs] for entry in entries]
    assert tops == [[(_told(top), top.logprob) for top in token.top[:2]] for token in expected.only.new]
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode(errors="replace") == expected.text


def test_a_completion_is_our_own_generation(client: openai.OpenAI, ours: Client, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=6, temperature=0, logprobs=2)
    expected = ours.generate(PROMPT, model=model, max_new_tokens=6, logprobs=2)
    [choice] = answer.choices
    assert (answer.object, choice.text, choice.finish_reason) == ("text_completion", expected.text, "length")
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [token.logprob for token in expected.only.new]
    likeliest = [_told(token.top[0], "bytes:") for token in expected.only.new]
    assert choice.logprobs.tokens == likeliest, "greedy: the likeliest"
    assert [len(top) for top in choice.logprobs.top_logprobs or []] == [2] * 6, "no two read alike"


def _told(top: TokenLogprob, partial: str = "") -> str:
    """As OpenAI writes a part of a character."""
    return top.text if "\ufffd" not in top.text else partial + "".join(f"\\x{byte:02x}" for byte in top.raw)


def test_a_prompt_of_token_ids(client: openai.OpenAI, ours: Client, model: str) -> None:
    ids = list(ours.tokenize(PROMPT, model=model).token_ids)
    both = [
        client.completions.create(model=model, prompt=prompt, max_tokens=4, temperature=0) for prompt in (PROMPT, ids)
    ]
    assert both[0].choices[0].text == both[1].choices[0].text


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str, kind: str) -> None:
    shared: dict[str, Any] = {"model": model, "max_tokens": 8, "n": 2, "seed": 5, "temperature": 1.0}
    create: Any = client.chat.completions.create if kind == "chat" else client.completions.create
    own = {"messages": MESSAGES, "logprobs": True} if kind == "chat" else {"prompt": PROMPT, "logprobs": 0}
    whole = create(**shared, **own)
    texts, logprobs, reasons, last = ["", ""], [[], []], [None, None], None
    with create(**shared, **own, stream=True, stream_options={"include_usage": True}) as chunks:
        for chunk in chunks:
            last = chunk
            for choice in chunk.choices:
                text = choice.delta.content if kind == "chat" else choice.text
                texts[choice.index] += text or ""
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
                if choice.logprobs is not None:
                    logprobs[choice.index] += _logprobs(choice)
                assert chunk.usage is None
    assert last is not None
    assert last.choices == [], "the usage has a chunk of its own"
    assert last.usage == whole.usage
    assert whole.usage.completion_tokens == 16
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert texts == [choice.message.content if kind == "chat" else choice.text for choice in whole.choices]
    assert texts[0] != texts[1], "choices are drawn with seeds of their own"
    assert logprobs == [_logprobs(choice) for choice in whole.choices]


def _logprobs(choice: Any) -> list[float]:
    told = choice.logprobs
    return [entry.logprob for entry in told.content] if hasattr(told, "content") else told.token_logprobs


def test_a_seed_repeats_itself(client: openai.OpenAI, model: str) -> None:
    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, seed=seed)
        return answer.choices[0].message.content

    assert text(1) == text(1) != text(2)


def test_stop_strings(client: openai.OpenAI, model: str) -> None:
    arguments: dict[str, Any] = {"model": model, "prompt": PROMPT, "max_tokens": 12, "seed": 3}
    whole = client.completions.create(**arguments).choices[0].text
    stop = whole[4:6]
    cut = client.completions.create(**arguments, stop=[stop, "never"]).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    never = client.completions.create(**arguments, stop="never to be seen").choices[0]
    assert (never.text, never.finish_reason) == (whole, "length")


def test_refusals_are_the_packages_own_exceptions(client: openai.OpenAI, model: str) -> None:
    def ask(**change: Any) -> None:
        arguments: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 2}
        client.chat.completions.create(**arguments | change)

    with pytest.raises(openai.UnprocessableEntityError, match=r"temperature must be a number in 0\.0 … 100\.0") as bad:
        ask(temperature=200)
    assert (bad.value.code, bad.value.type) == ("INVALID_ARGUMENT", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="loaded: torch, mlx"):
        ask(model="gpt-0")
    with pytest.raises(openai.UnprocessableEntityError, match="chat template reads no tools"):
        ask(tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.UnprocessableEntityError, match=r"unknown fields \['zork'\]"):
        ask(extra_body={"zork": 1})
    with pytest.raises(openai.UnprocessableEntityError, match="the model has layers 0:3"):
        ask(extra_body={"probewire": {"hooks": [{"site": "resid_post.3", "capture": {}}]}}, stream=True)
    ask()
