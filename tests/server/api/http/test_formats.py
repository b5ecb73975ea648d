"""How the form of an answer is chosen, and what its events become in each form that streams."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from probewire.protos.errors import InvalidArgument, ResourceExhausted
from probewire.protos.metrics import Measured
from probewire.protos.model import Event, Finished, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.delimited import iter_delimited
from probewire.server.api.http.formats import (
    FORMATS,
    Delimited,
    Format,
    JsonLines,
    ServerSentEvents,
    accepted,
    chosen_format,
)

TOKEN = Token("input", 0, 7, "é\n")
FRAME = TensorFrame(
    "input", 0, "h", ("resid_post.0",), (3,), 0, Tensor.of(np.array([[[1.5, np.nan]]], dtype=np.float32))
)
EVENTS: list[Event] = [
    TOKEN,
    FRAME,
    Measured("input", Tensor.of(np.array([[0.25]])), (4,)),
    Finished("input", "length", Usage(1, 1)),
]


@pytest.mark.parametrize(
    ("accept", "chosen", "named"),
    [
        ("", "json", False),
        ("  ", "json", False),
        ("*/*", "json", False),
        ("application/*", "json", False),
        ("application/json", "json", True),
        ("text/event-stream", "sse", True),
        ("application/x-ndjson", "ndjson", True),
        ("application/x-protobuf", "protobuf", True),
        ("application/octet-stream", "safetensors", True),
        ("Application/SafeTensors; v=1", "safetensors", True),
        ("text/html, text/event-stream", "sse", True),
        ("text/event-stream;q=0.5, application/safetensors", "safetensors", True),
        ("text/event-stream; Q=0.5, application/safetensors;q=0.4", "sse", True),
        ("text/html, application/xhtml+xml, */*;q=0.8", "json", False),
        ("text/event-stream;q=0, application/x-ndjson;q=0.1", "ndjson", True),
        ("text/event-stream;q=high, application/x-ndjson;q=0.1", "ndjson", True),
        ("application/x-ndjson, text/event-stream", "ndjson", True),
    ],
)
def test_accept_names_the_likeliest_form_that_there_is(accept: str, chosen: Format, named: bool) -> None:
    assert accepted(accept) == (chosen, named)


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", ",", "*/*;q=0"])
def test_accept_that_allows_none_of_them_is_refused(accept: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        accepted(accept)
    assert caught.value.message == (f"nothing that Accept {accept!r} allows can be sent; allowed: {', '.join(FORMATS)}")


@pytest.mark.parametrize(
    ("accept", "named", "stream", "chosen"),
    [
        ("", None, None, "json"),
        ("", None, True, "sse"),
        ("", None, False, "json"),
        ("*/*", None, True, "sse"),
        ("application/json", None, True, "sse"),
        ("text/event-stream", None, True, "sse"),
        ("application/x-ndjson", None, True, "ndjson"),
        ("application/safetensors", None, False, "safetensors"),
        ("text/event-stream", "json", None, "json"),
        ("image/png", "safetensors", None, "safetensors"),
        ("", "protobuf", True, "protobuf"),
        ("", "json", False, "json"),
    ],
)
def test_the_body_wins_over_accept_and_a_stream_of_json_is_events(
    accept: str, named: str | None, stream: bool | None, chosen: Format
) -> None:
    assert chosen_format(accept, named, stream) == chosen


@pytest.mark.parametrize(
    ("accept", "named", "stream", "told"),
    [
        ("", "json", True, "stream is true, but json is not a stream; streams are sse, ndjson, protobuf"),
        ("", "safetensors", True, "stream is true, but safetensors is not a stream"),
        ("", "sse", False, "stream is false, but sse is a stream"),
        ("text/event-stream", None, False, "stream is false, but sse is a stream"),
        ("application/safetensors", None, True, "stream is true, but safetensors is not a stream"),
        ("", "xml", None, "format 'xml'; allowed: json, safetensors, sse, ndjson, protobuf"),
        ("", "", None, "format ''; allowed"),
    ],
)
def test_a_form_that_contradicts_the_stream_is_refused(
    accept: str, named: str | None, stream: bool | None, told: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        chosen_format(accept, named, stream)
    assert caught.value.message.startswith(told)


def read_sse(data: bytes) -> list[tuple[str, Any]]:
    """As a browser's EventSource reads them."""
    found: list[tuple[str, Any]] = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        name, text = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(text.removeprefix("data: "))))
    return found


def test_an_event_of_the_stream_is_its_kind_and_one_line_of_data() -> None:
    pieces = ServerSentEvents("list").item(EVENTS)
    assert len(pieces) == len(EVENTS)
    told = read_sse(b"".join(pieces))
    assert [name for name, _ in told] == ["token", "tensor_frame", "measured", "finished"]
    assert told[0][1]["text"] == "é\n", "a line break inside the text does not end the data"
    assert told[1][1]["tensor"] == {"dtype": "float32", "shape": [1, 1, 2], "data": [[[1.5, None]]]}
    assert told[2][1]["values"]["data"] == [[0.25]]


def test_a_json_line_has_one_key_which_is_the_kind() -> None:
    pieces = JsonLines("base64").item(EVENTS)
    assert all(piece.endswith(b"\n") and piece.count(b"\n") == 1 for piece in pieces)
    lines = [json.loads(piece) for piece in pieces]
    assert [list(line) for line in lines] == [["token"], ["tensor_frame"], ["measured"], ["finished"]]
    assert lines[1]["tensor_frame"]["tensor"]["data"] == "AADAPwAAwH8=", "1.5 and NaN, little-endian"


def test_protobuf_comes_back_as_the_same_events() -> None:
    form = Delimited()
    found = list(iter_delimited([*form.item(EVENTS), form.end()]))
    assert found[0] == TOKEN
    assert isinstance(found[1], TensorFrame)
    assert found[1].tensor == FRAME.tensor
    assert found[3] == EVENTS[3]


def test_an_error_ends_each_form_as_its_readers_expect() -> None:
    error = ResourceExhausted("too much", retry_after_s=2.0)
    [(name, told)] = read_sse(ServerSentEvents("list").error(error, "req-1"))
    assert name == "error"
    assert told["error"] == json.loads(JsonLines("list").error(error, "req-1"))["error"]
    assert (told["error"]["code"], told["error"]["request_id"]) == ("RESOURCE_EXHAUSTED", "req-1")
    with pytest.raises(ResourceExhausted, match="too much") as caught:
        list(iter_delimited([Delimited().error(error, "req-1")]))
    assert caught.value.retry_after_s == 2.0


def test_only_protobuf_marks_a_good_end() -> None:
    assert (ServerSentEvents("list").end(), JsonLines("list").end()) == (b"", b"")
    assert list(iter_delimited([Delimited().end()])) == []


def test_a_step_without_events_sends_nothing() -> None:
    assert ServerSentEvents("list").item([]) == JsonLines("list").item([]) == Delimited().item([]) == []
