"""What REST is sent by mistake or in malice: refused as the caller's fault, never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_model import FakeOperations
from http_server import http_server
from hypothesis import given, settings, strategies as st
from rest_caller import HOOK, Caller, caller, error_of

from probewire.server.api.http import body as rest_body


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
        "targets",
        "metric",
        "plans",
        "base",
        "rules",
        "direct",
        "path",
        "share",
    ]
)


@settings(max_examples=120)
@given(
    st.sampled_from(
        [
            "generate",
            "run",
            "gradients",
            "sweep",
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
