"""REST answers that fail, and callers who leave; a real server where the connection itself matters."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_model import FakeOperations
from http_server import eventually, http_server
from rest_caller import Caller, error_of, sse

from probewire.protos.errors import Code, NotFound, Unavailable
from probewire.protos.model import Event, Finished, GenerateRequest, Started, Token
from probewire.protos.wire.delimited import iter_delimited
from probewire.protos.wire.error_body import error_from_json
from probewire.server.api.http.app import create_app

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


def test_errors_survive_the_way_as_json() -> None:
    assert isinstance(error_from_json({"error": {"code": "NOT_FOUND", "message": "x"}}), NotFound)
    assert error_from_json("<html>", Code.UNAVAILABLE).code is Code.UNAVAILABLE


# ---- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"text": "hang"}),
        ("/v1/generate", {"text": "hang@1"}),
        ("/v1/run", {"text": "hang@0"}),
        ("/v1/gradients", {"text": "hang", "metric": {"logit": {"token": 1}}}),
        ("/v1/sweep", {"text": "hang@1", "metric": {"logit": {"token": 1}}, "plans": [{}, {}]}),
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
                b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(data))
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
    headers = [(b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": headers, "query_string": b""}

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
