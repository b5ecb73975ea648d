"""OpenAI's dialect: the real `openai` package over a real server, and the wire where the package hides it."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import openai
import pytest
from fake_model import FakeOperations
from http_server import eventually, http_server

from probewire.protos.model import GenerateRequest, Message
from probewire.protos.spec import Add, Hook

OPERATIONS = FakeOperations()


@pytest.fixture(scope="module")
def url() -> Generator[str]:
    with http_server(OPERATIONS) as url:
        yield url


@pytest.fixture
def operations() -> Generator[FakeOperations]:
    OPERATIONS.requests.clear()
    yield OPERATIONS
    OPERATIONS.loaded["fake/model"] = FakeOperations().loaded["fake/model"]


@pytest.fixture(scope="module")
def client(url: str) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


USER: list[Any] = [{"role": "user", "content": "Hi"}]
HOOKS = [{"site": "resid_post.1", "capture": {}, "id": "mine"}]


def sent(operations: FakeOperations) -> GenerateRequest:
    (request,) = operations.requests
    assert isinstance(request, GenerateRequest)
    return request


# ---- the package -----------------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("fake/model", "model", "probewire")
    assert client.models.retrieve("fake/model").id == "fake/model"
    with pytest.raises(openai.NotFoundError, match="loaded: fake/model"):
        client.models.retrieve("nobody")


def test_a_chat(client: openai.OpenAI, operations: FakeOperations) -> None:
    answer = client.chat.completions.create(model="fake/model", messages=USER, max_tokens=3, seed=5, stop=["x", "y"])
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "abc", "length")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "fake/model", "f00d")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 3, 12)
    assert answer.model_extra == {}
    request = sent(operations)
    assert request.inputs[0].messages == (Message("user", "Hi"),)
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (3, 1.0, 1.0)
    assert (sampling.seed, sampling.stop, sampling.logprobs) == (5, ("x", "y"), None)


def test_a_chat_that_streams(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="", messages=USER, max_completion_tokens=3, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "abc"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * 4 + ["length"]
    assert [chunk.usage is None for chunk in chunks] == [True] * 5 + [False]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 12
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("text", "more", "reason", "said"),
    [("Hi", {"stop": "b"}, "stop", "a"), ("<eos>", {}, "stop", "ab"), ("Hi", {"max_tokens": 1}, "length", "a")],
)
def test_why_it_ended(client: openai.OpenAI, text: str, more: dict[str, Any], reason: str, said: str) -> None:
    choice = client.completions.create(model="", prompt=text, **more).choices[0]
    assert (choice.finish_reason, choice.text) == (reason, said)


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices(client: openai.OpenAI, operations: FakeOperations, stream: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if stream else {}
    answer: Any = client.chat.completions.create(model="", messages=USER, n=3, max_tokens=2, stream=stream, **options)
    texts = ["", "", ""]
    if stream:
        chunks = list(answer)
        usage = chunks[-1].usage
        for chunk in chunks[:-1]:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    else:
        usage = answer.usage
        for choice in answer.choices:
            texts[choice.index] = choice.message.content
    assert texts == ["ab", "bc", "cd"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (9, 6)
    assert [item.name for item in sent(operations).inputs] == ["0", "1", "2"]


def test_completions_of_text_and_of_token_ids(client: openai.OpenAI, operations: FakeOperations) -> None:
    answer = client.completions.create(model="", prompt=["abc", "de"], n=2, max_tokens=1)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)
    assert [item.text for item in sent(operations).inputs] == ["abc", "abc", "de", "de"]
    operations.requests.clear()
    client.completions.create(model="", prompt=[1, 2, 3])
    assert (sent(operations).inputs[0].token_ids, sent(operations).sampling.max_new_tokens) == ((1, 2, 3), 16)
    operations.requests.clear()
    client.completions.create(model="", prompt=[[1, 2], [3]])
    assert [item.token_ids for item in sent(operations).inputs] == [(1, 2), (3,)]


def test_completions_that_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="", prompt="Hi", max_tokens=2, stream=True, logprobs=1))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
    offsets = [chunk.choices[0].logprobs.text_offset for chunk in chunks if chunk.choices[0].logprobs]
    assert offsets == [[0], [1]]
    assert chunks[-1].choices[0].finish_reason == "length"


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="", messages=USER, max_tokens=2, logprobs=True, top_logprobs=2, temperature=0
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert [(entry.token, entry.logprob, entry.bytes) for entry in content] == [("a", -0.5, [97]), ("b", -0.5, [98])]
    assert [top.token for top in content[0].top_logprobs] == ["a", "b"]
    chosen_alone = client.chat.completions.create(model="", messages=USER, max_tokens=1, logprobs=True)
    assert chosen_alone.choices[0].logprobs is not None
    assert chosen_alone.choices[0].logprobs.content is not None
    assert chosen_alone.choices[0].logprobs.content[0].top_logprobs == []


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    logprobs = client.completions.create(model="", prompt="Hi", max_tokens=2, logprobs=2).choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset) == (["a", "b"], [-0.5, -0.5], [0, 1])
    assert logprobs.top_logprobs == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]


def array_of(tensor: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = {"bfloat16": ml_dtypes.bfloat16}.get(tensor["dtype"], tensor["dtype"])
    return np.frombuffer(base64.b64decode(tensor["data"]), dtype).reshape(tensor["shape"])


def test_captures_and_edits_ride_on_the_same_call(client: openai.OpenAI, operations: FakeOperations) -> None:
    edit = {"site": "mlp_out.0", "edit": {"add": {"vector": [1.0, 0.0, 0.0, 0.0], "alpha": 4}}}
    answer = client.chat.completions.create(
        model="", messages=USER, max_tokens=3, extra_body={"probewire": {"hooks": [edit, *HOOKS]}}
    )
    extra = (answer.model_extra or {})["probewire"]
    assert set(extra) == {"started", "tensors", "finished"}
    (tensor,) = extra["tensors"]
    assert (tensor["hook"], tensor["id"], tensor["site"], tensor["part"]) == (1, "mine", "resid_post.1", "")
    assert tensor["positions"] == list(range(11))
    assert array_of(tensor).shape == (11, 4)
    assert extra["finished"][0]["reason"] == "length"
    assert sent(operations).plan.hooks[0] == Hook("mlp_out.0", edit=Add(edit["edit"]["add"]["vector"], 4.0))


def test_in_a_stream_tensors_ride_on_the_chunk_of_their_step(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="", messages=USER, max_tokens=3, stream=True, extra_body={"probewire": {"hooks": HOOKS}}
    )
    extras = [(chunk.model_extra or {}).get("probewire", {}) for chunk in stream]
    assert [sorted(extra) for extra in extras] == [["started"], ["tensors"], ["tensors"], ["tensors"], ["finished"]]
    positions = [extra["tensors"][0]["positions"] for extra in extras[1:4]]
    assert positions == [list(range(9)), [9], [10]]
    assert array_of(extras[2]["tensors"][0]).shape == (1, 4)


def test_tensors_may_be_lists_and_the_field_may_be_empty(client: openai.OpenAI) -> None:
    extra = {"probewire": {"hooks": HOOKS, "tensors": "list"}}
    answer = client.completions.create(model="", prompt="Hi", max_tokens=1, extra_body=extra)
    assert np.shape((answer.model_extra or {})["probewire"]["tensors"][0]["data"]) == (2, 4)
    bare = client.completions.create(model="", prompt="Hi", max_tokens=1, extra_body={"probewire": {}})
    assert (bare.model_extra or {})["probewire"]["tensors"] == []


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    for code, kind in [
        ("NOT_FOUND", openai.NotFoundError),
        ("INVALID_ARGUMENT", openai.UnprocessableEntityError),
        ("RESOURCE_EXHAUSTED", openai.RateLimitError),
        ("UNAVAILABLE", openai.InternalServerError),
        ("FAILED_PRECONDITION", openai.ConflictError),
    ]:
        with pytest.raises(kind, match="told to") as caught:
            client.completions.create(model="", prompt=f"raise:{code}")
        assert caught.value.code == code
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=USER)


def test_an_error_within_a_stream_is_raised(client: openai.OpenAI) -> None:
    stream = client.completions.create(model="", prompt="raise:UNAVAILABLE@2", stream=True)
    assert [next(stream).choices[0].text for _ in range(2)] == ["a", "b"]
    with pytest.raises(openai.APIError, match="told to") as caught:
        next(stream)
    assert caught.value.code == "UNAVAILABLE"


def test_closing_a_stream_cancels_the_request(client: openai.OpenAI, operations: FakeOperations) -> None:
    before = operations.cancelled
    with client.completions.create(model="", prompt="hang@1", stream=True) as stream:
        next(stream)
    assert eventually(lambda: operations.cancelled == before + 1 and operations.running == 0)


def test_messages_may_come_in_parts_and_may_be_an_answer_given_back(
    client: openai.OpenAI, operations: FakeOperations
) -> None:
    first = client.chat.completions.create(model="", messages=USER, max_tokens=1)
    parts: Any = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    operations.requests.clear()
    back: Any = first.choices[0].message
    client.chat.completions.create(model="", messages=[*USER, back, parts], max_tokens=1)
    messages = sent(operations).inputs[0].messages
    assert messages == (Message("user", "Hi"), Message("assistant", "a"), Message("user", "a\nb"))


def test_without_a_bound_a_chat_gets_what_room_there_is(client: openai.OpenAI, operations: FakeOperations) -> None:
    stop = ["c"]  # so that the fake ends
    client.chat.completions.create(model="", messages=USER, stop=stop)
    assert sent(operations).sampling.max_new_tokens == 1024
    operations.requests.clear()
    client.chat.completions.create(model="", messages=[{"role": "user", "content": "x" * 2000}], stop=stop)
    assert sent(operations).sampling.max_new_tokens == 2048 - len("<user>\n") - 2000


# ---- the wire --------------------------------------------------------------------------------------------------------


def test_a_stream_ends_with_done_and_a_failed_one_does_not(url: str) -> None:
    body = {"prompt": "Hi", "stream": True, "max_tokens": 1}
    lines = httpx.post(f"{url}/v1/completions", json=body).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    failed = httpx.post(f"{url}/v1/completions", json={**body, "prompt": "crash@0"}).text.strip().split("\n\n")
    assert list(json.loads(failed[-1].removeprefix("data: "))) == ["error"]
    assert "secret" not in failed[-1]


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    ("path", "extra", "message"),
    [
        (CHAT, {"modalities": ["audio"]}, "modalities is not supported"),
        (CHAT, {"reasoning_effort": "high"}, "reasoning_effort is not supported"),
        (CHAT, {"store": True}, "store is not supported"),
        (CHAT, {"service_tier": "flex"}, "service_tier is not supported"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs needs logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "0 … 20"),
        (CHAT, {"n": 0}, "got n = 0"),
        (CHAT, {"n": 10**12}, "1 to 64"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, "mean the same"),
        (CHAT, {"max_tokens": 0}, "max_new_tokens must be"),
        (CHAT, {"temperature": "hot"}, "temperature must be a number"),
        (CHAT, {"stop": [1]}, "stop must be a string or a list of strings"),
        (CHAT, {"temprature": 1}, "unknown fields ['temprature']"),
        (CHAT, {"stream_options": {"x": 1}}, "stream_options has unknown fields ['x']"),
        (CHAT, {"probewire": {"hook": []}}, "probewire has unknown fields ['hook']"),
        (CHAT, {"probewire": {"hooks": [{"site": "q.0"}]}}, "neither an edit nor a capture"),
        (CHAT, {"probewire": {"hooks": [{"sit": "q.0"}]}}, "probewire.hooks[0] has unknown fields ['sit']"),
        (CHAT, {"probewire": {"tensors": "hex"}}, "tensors 'hex'"),
        (CHAT, {"probewire": []}, "probewire must be an object"),
        (CHAT, {"messages": []}, "messages is empty"),
        (CHAT, {"messages": "Hi"}, "messages must be a list"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content must be text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "messages[0].name is not supported"),
        (CHAT, {"echo": True}, "echo is not supported"),
        (TEXT, {"echo": True, "stream": True}, "echo comes with whole answers"),
        (TEXT, {"echo": "yes"}, "echo must be true or false"),
        (TEXT, {"max_tokens": 0}, "max_new_tokens must be"),
        (TEXT, {"echo": True, "max_tokens": -1}, "max_new_tokens must be"),
        (TEXT, {"echo": True, "max_tokens": 0, "probewire": {"session": "s"}}, "follows no session"),
        (TEXT, {"best_of": 2}, "best_of is not supported"),
        (TEXT, {"suffix": "end"}, "suffix is not supported"),
        (TEXT, {"prompt": None}, "prompt must be a string"),
        (TEXT, {"prompt": []}, "prompt must be a string"),
        (TEXT, {"prompt": ["a", 1]}, "prompt mixes kinds"),
        (TEXT, {"prompt": [[1], []]}, "prompt mixes kinds"),
        (TEXT, {"prompt": ["a"] * 65}, "at most 64"),
        (TEXT, {"logprobs": True}, "logprobs must be an integer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    url: str, operations: FakeOperations, path: str, extra: dict[str, Any], message: str
) -> None:
    base = {"messages": USER} if path == CHAT else {"prompt": "Hi"}
    response = httpx.post(url + path, json={**base, **extra})
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert operations.requests == []


def test_what_asks_for_nothing_is_accepted(url: str) -> None:
    harmless = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "modalities": ["text"],
        "n": None,
        "seed": None,
        "stop": None,
        "logprobs": False,
        "stream_options": None,
        "prompt_cache_key": "k",
        "max_tokens": 1,
    }
    assert httpx.post(url + CHAT, json={"messages": USER, **harmless}).status_code == 200
    text = {"prompt": "Hi", "echo": False, "best_of": 1, "suffix": None, "max_tokens": 1}
    assert httpx.post(url + TEXT, json=text).status_code == 200
