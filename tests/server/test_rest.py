"""The REST routes over pretended operations, in process; a real server where the connection itself matters."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import safetensors
from fake_model import N_LAYERS, FakeOperations
from fastapi import FastAPI
from http_server import eventually, http_server
from hypothesis import given, settings, strategies as st

from probewire.protos.assemble import assemble
from probewire.protos.delimited import MEDIA_TYPE, iter_delimited
from probewire.protos.error_body import error_from_json
from probewire.protos.errors import Code, NotFound, Unavailable
from probewire.protos.loading import LoadRequest
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    Started,
    StoredCapture,
    TensorFrame,
    Token,
)
from probewire.protos.spec import Capture, Hook
from probewire.protos.tensors import Tensor
from probewire.protos.wire import from_json
from probewire.server import rest_body
from probewire.server.rest import create_app


class Caller:
    """Plain calls into an app, without a socket."""

    def __init__(self, app: FastAPI, operations: FakeOperations) -> None:
        self.app = app
        self.operations = operations

    def __call__(self, method: str, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        if body is not None:
            kwargs["json"] = body
        return asyncio.run(call())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self("GET", path, **kwargs)

    def post(self, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        return self("POST", path, body, **kwargs)


def caller(**fake: Any) -> Caller:
    operations = FakeOperations(**fake)
    return Caller(create_app(operations, version="1.2.3", max_body_bytes=1 << 16), operations)


@pytest.fixture
def call() -> Caller:
    return caller()


HOOK = {"site": "resid_post.1", "capture": {}}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


# ---- generate and run ------------------------------------------------------------------------------------------------


def test_generate_answers_with_one_object(call: Caller) -> None:
    answer = call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 3}, "hooks": [HOOK]}).json()
    assert list(answer) == ["started", "text", "tokens", "finished", "tensors"]
    assert answer["text"] == {"input": "abc"}
    assert [token["index"] for token in answer["tokens"]] == [0, 1, 2]
    assert answer["finished"][0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}
    assert from_json(Started, answer["started"]).inputs[0].tokens == ("H", "i")
    (tensor,) = answer["tensors"]
    assert {key: tensor[key] for key in ("input", "hook", "id", "site", "part")} == {
        "input": "input",
        "hook": 0,
        "id": "hook0",
        "site": "resid_post.1",
        "part": "",
    }
    assert (tensor["positions"], tensor["shape"], tensor["dtype"]) == ([0, 1, 2, 3], [4, 4], "bfloat16")
    array = np.frombuffer(base64.b64decode(tensor["data"]), ml_dtypes.bfloat16).reshape(4, 4)
    assert (array[:, 0] - array[0, 0]).tolist() == [0, 1, 2, 3]


def test_the_short_form_is_the_long_form(call: Caller) -> None:
    sampling = {"max_new_tokens": 2, "temperature": 0.5, "seed": 3}
    call.post("/v1/generate", {"text": "Hi", "hooks": [HOOK], "sampling": sampling})
    call.post("/v1/generate", {"inputs": [{"text": "Hi"}], "plan": {"hooks": [HOOK]}, "sampling": sampling})
    call.post("/v1/run", {"token_ids": [1, 2], "hooks": [HOOK]})
    short, long, run = call.operations.requests
    assert short == long
    assert isinstance(short, GenerateRequest)
    assert short.plan.hooks == (Hook("resid_post.1", capture=Capture()),)
    assert isinstance(run, RunRequest)
    assert run.inputs[0].token_ids == (1, 2)


def test_tensors_may_be_plain_lists_in_which_masked_scores_are_null(call: Caller) -> None:
    body = {"text": "abc", "hooks": [{"site": "attn_scores.0", "capture": {}}], "tensors": "list"}
    (tensor,) = call.post("/v1/run", body).json()["tensors"]
    assert tensor["shape"] == [2, 3, 3]
    first, _, last = tensor["data"][0]
    assert first[1:] == [None, None]
    assert None not in last


def test_a_pattern_gives_one_tensor_a_site_and_several_inputs_stay_apart(call: Caller) -> None:
    inputs = [{"text": "abc", "name": "a"}, {"text": "de", "name": "b"}]
    body = {"inputs": inputs, "plan": {"hooks": [{"site": "z.*", "capture": {}}]}}
    tensors = call.post("/v1/run", body).json()["tensors"]
    assert [(t["input"], t["site"]) for t in tensors] == [(n, f"z.{i}") for n in "ab" for i in range(N_LAYERS)]
    assert [t["shape"] for t in tensors[::N_LAYERS]] == [[3, 2, 2], [2, 2, 2]]


SAFETENSORS = {"accept": "application/safetensors"}


def safetensors_of(response: httpx.Response) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    assert response.headers["content-type"] == "application/safetensors"
    data = response.content
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = {key: json.loads(value) for key, value in header.get("__metadata__", {}).items()}
    return dict(safetensors.deserialize(data)), metadata


def test_one_safetensors_file_holds_everything(call: Caller) -> None:
    hooks = [HOOK, {**HOOK, "id": "mine", "where": {"positions": [-1]}}, {"site": "q.0", "capture": {}}]
    body = {"text": "abc", "hooks": hooks, "sampling": {"max_new_tokens": 2}}
    tensors, metadata = safetensors_of(call.post("/v1/generate", body, headers=SAFETENSORS))
    assert set(tensors) == {"input/resid_post.1#hook0", "input/resid_post.1#mine", "input/q.0"}
    assert tensors["input/q.0"]["dtype"] == "BF16"
    assert metadata["tensors"]["input/resid_post.1#mine"]["positions"] == [2]
    assert metadata["text"] == {"input": "ab"}
    assert from_json(Finished, metadata["finished"][0]).reason == "length"
    assert from_json(Started, metadata["started"]).model == "fake/model"
    by_format = call.post("/v1/generate", {**body, "format": "safetensors"})
    assert set(safetensors_of(by_format)[0]) == set(tensors)


def sse(response: httpx.Response) -> list[tuple[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.strip().split("\n\n")
    lines = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    return [(block["event"], json.loads(block["data"])) for block in lines]


@pytest.mark.parametrize(
    ("extra", "headers"),
    [
        ({}, {"accept": "text/event-stream"}),
        ({"stream": True}, {}),
        ({"format": "sse"}, {"accept": "application/json"}),
    ],
)
def test_server_sent_events(call: Caller, extra: dict[str, Any], headers: dict[str, str]) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 2}, **extra}
    events = sse(call.post("/v1/generate", body, headers=headers))
    assert [name for name, _ in events] == ["started", "tensor_frame", "token", "tensor_frame", "token", "finished"]
    kinds = {"started": Started, "tensor_frame": TensorFrame, "token": Token, "finished": Finished}
    values = [from_json(kinds[name], data) for name, data in events]
    (capture,) = assemble(value for value in values if isinstance(value, TensorFrame)).values()
    assert capture.positions == (0, 1, 2)


def test_json_lines_with_plain_lists(call: Caller) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 1}, "tensors": "list"}
    response = call.post("/v1/generate", body, headers={"accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [next(iter(line)) for line in lines] == ["started", "tensor_frame", "token", "finished"]
    assert np.shape(lines[1]["tensor_frame"]["tensor"]["data"]) == (1, 2, 4)


def test_length_delimited_protobuf(call: Caller) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 2}}
    response = call.post("/v1/generate", body, headers={"accept": MEDIA_TYPE})
    assert response.headers["content-type"] == MEDIA_TYPE
    events = list(iter_delimited([response.content]))
    assert [type(event) for event in events] == [Started, TensorFrame, Token, TensorFrame, Token, Finished]


@pytest.mark.parametrize(
    ("body", "accept", "expected"),
    [
        ({}, "*/*", "application/json"),
        ({}, "", "application/json"),
        ({}, "text/html, application/*;q=0.8", "application/json"),
        ({}, "application/json;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
        ({}, "application/octet-stream", "application/safetensors"),
        ({"stream": True}, "application/json", "text/event-stream; charset=utf-8"),
        ({"stream": True}, MEDIA_TYPE, MEDIA_TYPE),
        ({"stream": False}, "application/json", "application/json"),
        ({"format": "protobuf"}, "*/*", MEDIA_TYPE),
    ],
)
def test_how_the_answer_is_chosen(call: Caller, body: dict[str, Any], accept: str, expected: str) -> None:
    response = call.post("/v1/run", {"text": "Hi", **body}, headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, expected)


@pytest.mark.parametrize(
    ("body", "accept", "message"),
    [
        ({}, "text/html", "Accept 'text/html'"),
        ({"format": "xml"}, "*/*", "format 'xml'; allowed: json"),
        ({"format": "json", "stream": True}, "*/*", "json is not a stream"),
        ({"stream": False}, "text/event-stream", "sse is a stream"),
        ({"stream": "yes"}, "*/*", "stream must be true or false"),
        ({"tensors": "hex"}, "*/*", "tensors 'hex'; allowed: base64, list"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(call: Caller, body: dict[str, Any], accept: str, message: str) -> None:
    response = call.post("/v1/run", {"text": "Hi", **body}, headers={"accept": accept})
    assert response.status_code == 422
    assert message in error_of(response)["message"]
    assert call.operations.requests == []


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": "a", "hoks": []}, "unknown fields ['hoks']"),
        ({"text": "a", "hooks": [{**HOOK, "when": 1}]}, "plan.hooks[0] has unknown fields ['when']"),
        ({"text": "a", "sampling": {"max_new_tokens": "3"}}, "sampling.max_new_tokens must be a int"),
        ({"text": "a", "inputs": [{"text": "b"}]}, "give inputs, or text for a single input, not both"),
        ({"text": "a", "messages": []}, "exactly one of text, messages and token_ids"),
        ({"text": "a", "hooks": [], "plan": {"hooks": []}}, "give plan or hooks, not both"),
        ({"text": "a", "hooks": [{"site": "resid.1", "capture": {}}]}, "unknown site 'resid.1'"),
        ({"text": "a", "hooks": {"site": "q.0"}}, "plan.hooks must be a list"),
        ({"text": "a", "hooks": [{"site": "q.0", "edit": {"add": {"vector": [1, "x"]}}}]}, "as a tensor"),
        ({"text": "a", "hooks": [{"site": "q.0", "edit": {"scale": {"factor": 2**70}, "add": {}}}]}, "one key"),
        ({}, "inputs is missing"),
        ({"inputs": 3}, "inputs must be a list"),
    ],
)
def test_bad_requests_are_422_and_say_what_and_where(call: Caller, body: dict[str, Any], message: str) -> None:
    response = call.post("/v1/generate", body)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (422, "INVALID_ARGUMENT")
    assert message in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"text": NaN}',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b"1e999",
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/generate", "/v1/tokenize", "/v1/models/load", "/v1/chat/completions", "/v1/activations/patch"]
)
def test_what_is_not_a_json_object_is_422_or_413(call: Caller, path: str, content: bytes) -> None:
    response = call.post(path, content=content)
    assert response.status_code == (413 if len(content) > 1 << 16 else 422)
    error_of(response)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FUZZED = caller()
FIELDS = st.sampled_from(
    [
        "text",
        "messages",
        "token_ids",
        "inputs",
        "input",
        "hooks",
        "plan",
        "sampling",
        "model",
        "prompt",
        "n",
        "stop",
        "logprobs",
        "probewire",
        "interventions",
        "activation_hooks",
        "model_path",
        "stream",
        "format",
        "tensors",
        "max_tokens",
        "tools",
        "baseline_prompt",
        "stream_options",
    ]
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(
        [
            "generate",
            "run",
            "tokenize",
            "chat/completions",
            "completions",
            "models/load",
            "models/unload",
            "activations/hooks",
            "activations/patch",
            "chat/completions/with_activations",
        ]
    ),
    st.dictionaries(FIELDS, JSON_VALUES, max_size=4),
)
def test_nothing_that_is_sent_is_a_500(path: str, body: dict[str, Any]) -> None:
    response = FUZZED.post(f"/v1/{path}", content=json.dumps(body, allow_nan=True).encode())
    assert response.status_code < 500, (path, body, response.text)


def test_a_body_is_measured_while_it_is_read(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes past the limit is dropped, so that the caller gets to the answer; but not without end."""

    async def endless() -> Any:
        for _ in range(100):
            read.append(1)
            yield b"x" * 4096

    monkeypatch.setattr(rest_body, "DROPPED_BYTES", 1 << 13)
    read: list[int] = []
    response = call.post("/v1/generate", content=endless())
    assert (response.status_code, error_of(response)["code"]) == (413, "RESOURCE_EXHAUSTED")
    assert "65,536 bytes" in error_of(response)["message"]
    assert len(read) < 25


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_answered_over_a_real_connection(chunked: bool) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 16)

    with http_server(FakeOperations(), max_body_bytes=1 << 16) as url, httpx.Client(base_url=url) as client:
        content = pieces() if chunked else b"x" * (4 << 20)
        assert client.post("/v1/generate", content=content).status_code == 413
        assert client.post("/v1/run", json={"text": "Hi"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/nothing", "/v2/models", "/"])
def test_an_unknown_path_is_our_404(call: Caller, path: str) -> None:
    response = call.get(path)
    assert (response.status_code, error_of(response)["code"]) == (404, "NOT_FOUND")


def test_a_wrong_method_is_our_405(call: Caller) -> None:
    response = call.get("/v1/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    error_of(response)


def test_unknown_query_parameters_are_refused(call: Caller) -> None:
    assert "['modle']" in error_of(call.get("/v1/weights?modle=x"))["message"]
    assert call.get("/v1/weights?model=fake/model&model=b").status_code == 422


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("when", ["", "@2"])
def test_every_code_has_its_status_while_nothing_is_sent(call: Caller, code: Code, when: str) -> None:
    response = call.post("/v1/generate", {"text": f"raise:{code.name}{when}"})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (code.value.http, code.name)
    assert response.headers["retry-after"] == "2"
    rebuilt = error_from_json(response.json())
    assert (rebuilt.code, rebuilt.retry_after_s) == (code, 1.5)


def test_an_error_before_the_first_event_of_a_stream_has_a_status(call: Caller) -> None:
    response = call.post("/v1/generate", {"text": "raise:UNAVAILABLE", "stream": True})
    assert response.status_code == 503


def test_an_error_within_a_stream_is_its_last_event(call: Caller) -> None:
    body = {"text": "raise:UNAVAILABLE@1"}
    events = sse(call.post("/v1/generate", {**body, "stream": True}))
    assert [name for name, _ in events] == ["started", "token", "error"]
    assert events[-1][1]["error"]["code"] == "UNAVAILABLE"
    lines = call.post("/v1/generate", {**body, "format": "ndjson"}).text.splitlines()
    assert json.loads(lines[-1])["error"]["code"] == "UNAVAILABLE"
    seen = iter_delimited([call.post("/v1/generate", {**body, "format": "protobuf"}).content])
    assert [type(next(seen)) for _ in range(2)] == [Started, Token]
    with pytest.raises(Unavailable, match="told to"):
        next(seen)


@pytest.mark.parametrize("when", ["", "@1"])
def test_a_bug_is_a_500_that_tells_nothing_and_is_logged(
    call: Caller, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = call.post("/v1/generate", {"text": f"crash{when}"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] in error_of(response)["message"]
    assert response.headers["x-request-id"] in caplog.text
    assert "a secret of the server" in caplog.text


def test_a_bug_within_a_stream_tells_nothing_either(call: Caller, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = call.post("/v1/generate", {"text": "crash@1", "stream": True})
    name, data = sse(response)[-1]
    assert (name, data["error"]["code"]) == ("error", "INTERNAL")
    assert "secret" not in response.text
    assert "a secret of the server" in caplog.text


class Cut(FakeOperations):
    """Streams that end before their inputs have finished."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        async for events in super().generate(request):
            yield [event for event in events if not isinstance(event, Finished)]


def test_a_short_answer_is_not_passed_off_as_a_whole_one() -> None:
    call = Caller(create_app(Cut(), version="1"), Cut())
    body = {"text": "Hi", "sampling": {"max_new_tokens": 1}}
    assert call.post("/v1/generate", body).status_code == 500
    assert sse(call.post("/v1/generate", {**body, "stream": True}))[-1][0] == "error"


# ---- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"text": "hang"}),
        ("/v1/generate", {"text": "hang@1"}),
        ("/v1/run", {"text": "hang@0"}),
        ("/v1/completions", {"prompt": "hang@1"}),
        ("/v1/activations/patch", {"prompt": "hang@1", "interventions": [{"layer_name": "model.layers.0"}]}),
    ],
)
def test_a_caller_who_leaves_cancels_a_request_that_has_sent_nothing(path: str, body: dict[str, Any]) -> None:
    operations = FakeOperations()
    with http_server(operations) as url:
        with socket.create_connection((httpx.URL(url).host, httpx.URL(url).port or 0)) as connection:
            data = json.dumps(body).encode()
            connection.sendall(
                b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(data))
            )
            connection.sendall(data)
            assert eventually(lambda: operations.running == 1)
        assert eventually(lambda: operations.cancelled == 1 and operations.running == 0)
        with httpx.Client(base_url=url) as client:
            eventually(lambda: 'code="499"' in client.get("/metrics").text)
            assert f'code="499",method="POST",route="{path}"}} 1' in client.get("/metrics").text


@pytest.mark.parametrize("form", ["sse", "ndjson", "protobuf"])
@pytest.mark.parametrize("text", ["hang@3", "long"])
def test_a_caller_who_leaves_a_stream_cancels_it(form: str, text: str) -> None:
    operations = FakeOperations(delay_s=0.005)
    body = {"text": text, "format": form, "sampling": {"max_new_tokens": 10_000}}
    with http_server(operations) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/generate", json=body) as response:
            chunks = response.iter_bytes()  # a name, since httpx closes the response with its iterator
            next(chunks)
            assert operations.running == 1
        assert eventually(lambda: operations.cancelled == 1 and operations.running == 0)


def test_events_come_as_they_are_made() -> None:
    operations = FakeOperations()
    with http_server(operations) as url, httpx.Client(base_url=url) as client:
        with client.stream("POST", "/v1/generate", json={"text": "hang@2", "stream": True}) as response:
            seen = ""
            for chunk in response.iter_text():
                seen += chunk
                if seen.count("event: token") == 2:
                    break
        assert eventually(lambda: operations.cancelled == 1)


def test_a_stream_that_cannot_begin_to_be_sent_is_cancelled() -> None:
    """The caller goes between the first event and the answer's first byte."""
    operations = FakeOperations()
    app = create_app(operations, version="1")
    body = json.dumps({"text": "hang@1", "stream": True}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": [], "query_string": b""}

    async def scenario() -> None:
        sent = [{"type": "http.request", "body": body}]

        async def receive() -> Any:
            if sent:
                return sent.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            raise OSError("gone")

        await app({**scope, "http_version": "1.1", "scheme": "http"}, receive, send)

    asyncio.run(scenario())
    assert operations.running == 0


# ---- models, weights, captures, health -------------------------------------------------------------------------------


def test_models_in_openais_list_and_ours(call: Caller) -> None:
    answer = call.get("/v1/models").json()
    assert answer["object"] == "list"
    assert {**answer["data"][0], "created": 0} == {
        "id": "fake/model",
        "object": "model",
        "created": 0,
        "owned_by": "probewire",
    }
    info = from_json(ModelInfo, answer["models"][0])
    described = call.get("/v1/models/fake/model").json()
    assert described["object"] == "model"
    del described["object"], described["created"], described["owned_by"]
    assert from_json(ModelInfo, described) == info
    assert call.get("/v1/models/fake%2Fmodel").json()["id"] == "fake/model"
    assert call.get("/v1/models/").json()["id"] == "fake/model"
    assert call.get("/v1/models/nobody").status_code == 404


def test_load_in_our_words(call: Caller) -> None:
    answer = call.post("/v1/models/load", {"model": "org/m", "id": "m", "dtype": "float32"}).json()
    assert answer["status"] == "loaded"
    assert answer["model"]["id"] == answer["model_id"] == "m"
    assert call.operations.requests == [LoadRequest("org/m", "m", dtype="float32")]
    assert call.post("/v1/models/unload", {"model": "m"}).json()["status"] == "unloaded"
    assert call.post("/v1/models/unload", {"model": "m"}).status_code == 404
    assert call.post("/v1/models/unload", {}).status_code == 422


def test_load_in_neuroscopes_words(call: Caller) -> None:
    body = {"model_path": "/models/tiny", "trust_remote_code": False, "max_kv_size": 4096, "vocab_only": False}
    answer = call.post("/v1/models/load", {**body, "kv_bits": None}).json()
    assert (answer["model_id"], answer["status"], answer["supports_activations"]) == ("tiny", "loaded", True)
    assert answer["not_applied"] == ["max_kv_size"]
    call.post("/v1/models/load", {"model_path": "/models/tiny", "model_id": "t"})
    assert call.operations.requests == [LoadRequest("/models/tiny", "tiny"), LoadRequest("/models/tiny", "t")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model is missing"),
        ({"model_path": "m", "trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"model_path": "m", "kv_bits": 4}, "kv_bits is not supported"),
        ({"model": "m", "quantize": 4}, "unknown fields ['quantize']"),
        ({"model": "m", "model_path": "n"}, "mean the same"),
        ({"model": 3}, "model must be a string"),
    ],
)
def test_a_load_that_cannot_be_honoured_is_refused(call: Caller, body: dict[str, Any], message: str) -> None:
    response = call.post("/v1/models/load", body)
    assert response.status_code == 422
    assert message in error_of(response)["message"]


@pytest.mark.parametrize(("extra", "accept"), [({"stream": True}, "*/*"), ({}, "application/x-ndjson")])
def test_the_progress_of_a_load_comes_as_lines(call: Caller, extra: dict[str, Any], accept: str) -> None:
    response = call.post("/v1/models/load", {"model": "m", **extra}, headers={"accept": accept})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [(line["stage"], line["done"], line["total"]) for line in lines] == [("reading", 1, 2), ("ready", 2, 2)]
    assert from_json(ModelInfo, lines[-1]["info"]).id == "m"


def test_a_load_that_fails_says_so_in_either_form(call: Caller) -> None:
    assert call.post("/v1/models/load", {"model": "missing", "stream": True}).status_code == 404
    assert call.post("/v1/models/load", {"model": "broken"}).status_code == 409
    lines = call.post("/v1/models/load", {"model": "broken", "stream": True}).text.splitlines()
    assert json.loads(lines[-1])["error"]["code"] == "FAILED_PRECONDITION"


def test_tokenize(call: Caller) -> None:
    short = call.post("/v1/tokenize", {"text": "Hi"}).json()
    assert short == {"token_ids": [72, 105], "tokens": ["H", "i"], "text": "Hi"}
    assert call.post("/v1/tokenize", {"input": {"text": "Hi"}, "model": "fake/model"}).json() == short
    chat = call.post("/v1/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["text"] == "<user>x\n"
    assert call.post("/v1/tokenize", {"text": "a", "input": {"text": "b"}}).status_code == 422


def test_weights_by_name_as_json_or_safetensors(call: Caller) -> None:
    assert call.get("/v1/weights").json() == {"weights": {"model.layers.0/odd.weight": [2, 3]}}
    path = "/v1/weights/model.layers.0/odd.weight"
    weight = call.get(f"{path}?model=fake/model").json()
    assert (weight["name"], weight["dtype"], weight["shape"]) == ("model.layers.0/odd.weight", "bfloat16", [2, 3])
    assert call.get(f"{path}?tensors=list").json()["data"] == [[0, 1, 2], [3, 4, 5]]
    tensors, _ = safetensors_of(call.get(path, headers=SAFETENSORS))
    assert tensors["model.layers.0/odd.weight"]["shape"] == [2, 3]
    assert call.get(path, headers={"accept": "text/event-stream"}).status_code == 422
    assert call.get("/v1/weights/none").status_code == 404
    assert call.get("/v1/weights?model=none").status_code == 404


def test_stored_captures(call: Caller) -> None:
    stored = StoredCapture("cap-1", "resid_post.1", "input", (0, 1), "float32", (2, 2), "fake/model")
    call.operations.stored["cap-1"] = (stored, Tensor.of([[1.0, 2.0], [3.0, 4.0]]))
    assert from_json(StoredCapture, call.get("/v1/captures").json()["captures"][0]) == stored
    capture = call.get("/v1/captures/cap-1?tensors=list").json()
    assert (capture["positions"], capture["data"]) == ([0, 1], [[1, 2], [3, 4]])
    assert set(safetensors_of(call.get("/v1/captures/cap-1", headers=SAFETENSORS))[0]) == {"cap-1"}
    assert call("DELETE", "/v1/captures/cap-1").json() == {"status": "deleted", "id": "cap-1"}
    assert call("DELETE", "/v1/captures/cap-1").status_code == 404


def test_health_is_200_only_when_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    good = caller().get("/health")
    assert (good.status_code, good.json()["ready"], good.json()["status"]) == (200, True, "healthy")
    assert good.json()["models"] == {"fake/model": "ready"}
    assert good.json()["version"] == "1.2.3"
    bad = caller(ready=False).get("/health")
    assert (bad.status_code, bad.json()["status"]) == (503, "unhealthy")
    assert bad.json()["models"]["fake/model"].startswith("restarting")
    monkeypatch.setattr("probewire.server.rest_health.PATIENCE_S", 0.05)
    slow = caller(health_delay_s=5.0).get("/health")
    assert (slow.status_code, slow.json()["detail"]) == (503, "the models have not answered within 0.05 s")


def test_metrics_count_what_went_through(call: Caller) -> None:
    call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 3}, "hooks": [HOOK]})
    call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 2}, "stream": True})
    call.post("/v1/generate", {})
    call.get("/v1/models/fake/model")
    call.get("/v1/nothing")
    call("BREW", "/v1/generate")
    response = call.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = response.text.splitlines()
    for line in (
        'probewire_http_requests_total{code="200",method="POST",route="/v1/generate"} 2.0',
        'probewire_http_requests_total{code="422",method="POST",route="/v1/generate"} 1.0',
        'probewire_http_requests_total{code="200",method="GET",route="/v1/models/{model:path}"} 1.0',
        'probewire_http_requests_total{code="404",method="GET",route="none"} 1.0',
    ):
        assert line in lines
    assert any('method="other"' in line for line in lines)


# ---- OpenAPI ---------------------------------------------------------------------------------------------------------


def test_openapi_describes_the_bodies_that_we_parse(call: Caller) -> None:
    document = call.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"inputs", "text", "plan", "hooks", "sampling", "stream", "tensors", "format"} <= set(body["properties"])
    assert body["additionalProperties"] is False
    assert schemas["Hook"]["required"] == ["site"]
    assert {"$ref": "#/components/schemas/Add"} in [
        next(iter(choice["properties"].values())) for choice in schemas["Hook"]["properties"]["edit"]["oneOf"]
    ]
    assert "0 is greedy." in schemas["Sampling"]["properties"]["temperature"]["description"]
    assert schemas["Where"]["properties"]["phase"]["enum"] == ["all", "prompt", "generated"]
    assert {"type": "string", "enum": ["last", "mean", "norm", "next_logprob"]} in schemas["Capture"]["properties"][
        "reduce"
    ]["oneOf"]
    undefined = set(references(document)) - {f"#/components/schemas/{name}" for name in schemas}
    assert undefined == set()
    assert call.get("/docs").status_code == 200


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_says_what_it_is_for(call: Caller) -> None:
    document = call.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], path
            assert ("requestBody" in operation) == (method in ("post", "put") or path == "/v1/activations/hooks"), path


# ---- other origins ---------------------------------------------------------------------------------------------------


def test_other_origins_may_read_only_when_the_operator_says_so(call: Caller) -> None:
    origin = {"origin": "http://scope.example"}
    assert "access-control-allow-origin" not in call.get("/v1/models", headers=origin).headers
    app = create_app(FakeOperations(), version="1", allowed_origins=["http://scope.example"])
    allowed = Caller(app, FakeOperations()).get("/v1/models", headers=origin)
    assert allowed.headers["access-control-allow-origin"] == "http://scope.example"


def test_errors_survive_the_way_as_json() -> None:
    assert isinstance(error_from_json({"error": {"code": "NOT_FOUND", "message": "x"}}), NotFound)
    assert error_from_json("<html>", Code.UNAVAILABLE).code is Code.UNAVAILABLE
