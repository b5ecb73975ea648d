"""Our events in OpenAI's shapes."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
import orjson
import pytest

from probewire.protos.errors import Unavailable
from probewire.protos.model import (
    Event,
    Finished,
    InputStarted,
    Revised,
    Started,
    TensorFrame,
    Token,
    TokenLogprob,
    Usage,
)
from probewire.protos.tensors import Tensor
from probewire.server.api.http.answer import Answer
from probewire.server.api.openai.answer import Chunks, choice_reason, usage_json, whole_answer
from probewire.server.api.openai.request import Completion, chat_completion, text_completion


def chat(**fields: Any) -> Completion:
    return chat_completion({"messages": [{"role": "user", "content": "x"}], **fields})


def started(*names: str) -> Started:
    inputs = tuple(InputStarted(name, (1, 2), ("a", "b")) for name in names)
    return Started("r1", "m", "f00d", "torch", "cpu", "float32", "eager", {}, (), inputs)


def token(name: str, index: int, text: str) -> Token:
    top = (TokenLogprob(90, "z", -0.25, b"z"), TokenLogprob(ord(text[0]), text, -0.5, text.encode()))
    return Token(name, index, ord(text[0]), text, -0.5, top)


def frame(name: str, position: int, value: float, site: str = "z.1") -> TensorFrame:
    tensor = Tensor.of(np.array([[[value]]], dtype=np.float32))
    return TensorFrame(name, 0, "h", (site,), (position,), 0, tensor)


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """As a client gets it."""
    return json.loads(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


def chunks_of(lines: list[bytes]) -> list[dict[str, Any]]:
    for line in lines:
        assert line.startswith(b"data: ")
        assert line.endswith(b"\n\n")
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


@pytest.mark.parametrize(("reason", "told"), [("stop", "stop"), ("eos", "stop"), ("length", "length")])
def test_openai_knows_two_reasons(reason: Literal["stop", "eos", "length"], told: str) -> None:
    assert choice_reason(Finished("x", reason, Usage(1))) == told


def test_usage_is_summed() -> None:
    told = usage_json([Usage(3, 9), Usage(4, 9)], [Usage(3, 1), Usage(3, 2), Usage(4, 5)])
    assert told == {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
    assert usage_json([], []) == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def test_a_chat_is_answered_with_a_message() -> None:
    events: list[Event] = [
        started("input"),
        token("input", 0, "Hel"),
        token("input", 1, "lo"),
        Finished("input", "eos", Usage(5, 2)),
    ]
    told = whole_answer(chat(), Answer.of([events]))
    assert isinstance(told.pop("created"), int)
    assert told == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "model": "m",
        "system_fingerprint": "f00d",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }


def test_each_prompt_is_counted_once_and_choices_keep_their_order() -> None:
    completion = text_completion({"prompt": ["a", "b"], "n": 2})
    finished: list[Event] = [
        Finished("3", "length", Usage(7, 1)),
        Finished("0", "length", Usage(5, 1)),
        Finished("2", "stop", Usage(7, 1)),
        Finished("1", "length", Usage(5, 1)),
    ]
    events = [started("0", "1", "2", "3"), *(token(name, 0, name) for name in "3012"), *finished]
    told = whole_answer(completion, Answer.of([events]))
    assert (told["id"], told["object"]) == ("cmpl-r1", "text_completion")
    assert [(c["index"], c["text"], c["finish_reason"]) for c in told["choices"]] == [
        (0, "0", "length"),
        (1, "1", "length"),
        (2, "2", "stop"),
        (3, "3", "length"),
    ]
    assert told["usage"] == {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16}


def test_a_choice_has_its_own_logprobs() -> None:
    completion = text_completion({"prompt": ["a", "b"], "logprobs": 1})
    events = [
        started("0", "1"),
        token("0", 0, "x"),
        token("1", 0, "y"),
        token("0", 1, "w"),
        Finished("0", "eos", Usage(1, 2)),
        Finished("1", "eos", Usage(1, 1)),
    ]
    told = whole_answer(completion, Answer.of([events]))
    assert [choice["logprobs"]["tokens"] for choice in told["choices"]] == [["x", "w"], ["y"]]
    chatted = whole_answer(
        chat(logprobs=True, top_logprobs=1),
        Answer.of([[started("input"), token("input", 0, "x"), Finished("input", "eos", Usage(1, 1))]]),
    )
    [entry] = chatted["choices"][0]["logprobs"]["content"]
    assert (entry["token"], [top["token"] for top in entry["top_logprobs"]]) == ("x", ["z"])


def test_what_was_captured_is_told_where_the_request_has_our_field() -> None:
    events = [started("input"), frame("input", 0, 1.5), token("input", 0, "x"), Finished("input", "eos", Usage(1, 1))]
    assert "probewire" not in whole_answer(chat(), Answer.of([events]))
    extra = plain(whole_answer(chat(probewire={"tensors": "list"}), Answer.of([events])))["probewire"]
    assert set(extra) == {"started", "tensors", "finished"}
    assert extra["tensors"][0]["data"] == [[1.5]]


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_a_chat_that_streams_opens_with_its_role_and_ends_with_a_reason() -> None:
    chunks = Chunks(chat(stream=True))
    told = chunks_of(
        [
            *chunks.item([started("input")]),
            *chunks.item([token("input", 0, "a")]),
            *chunks.item([token("input", 1, "b"), Finished("input", "length", Usage(3, 2))]),
        ]
    )
    assert [chunk["choices"][0]["delta"] for chunk in told] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None, None, None, "length"]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in told} == {
        ("chatcmpl-r1", "chat.completion.chunk", "m")
    }
    assert not any("usage" in chunk or "probewire" in chunk for chunk in told)
    assert chunks.end() == b"data: [DONE]\n\n"


def test_a_completion_that_streams_is_text_from_the_first_chunk_on() -> None:
    chunks = Chunks(text_completion({"prompt": ["a", "b"], "stream": True}))
    assert chunks.item([started("0", "1")]) == []
    told = chunks_of(chunks.item([token("1", 0, "x"), token("0", 0, "y"), Finished("1", "eos", Usage(1, 1))]))
    choices = [chunk["choices"][0] for chunk in told]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (1, "x", None),
        (0, "y", None),
        (1, "", "stop"),
    ]


def test_every_choice_of_a_chat_opens_with_its_role() -> None:
    told = chunks_of(Chunks(chat(n=2, stream=True)).item([started("0", "1")]))
    assert [(c["choices"][0]["index"], c["choices"][0]["delta"]["role"]) for c in told] == [
        (0, "assistant"),
        (1, "assistant"),
    ]


def test_the_usage_comes_last_where_asked_for() -> None:
    chunks = Chunks(chat(n=2, stream=True, stream_options={"include_usage": True}))
    opening = chunks_of(chunks.item([started("0", "1")]))
    assert [chunk["usage"] for chunk in opening] == [None, None]
    chunks.item([Finished("0", "eos", Usage(3, 2)), Finished("1", "eos", Usage(3, 4))])
    usage, done = chunks.end().split(b"\n\n", 1)
    [told] = chunks_of([usage + b"\n\n"])
    assert told["choices"] == []
    assert told["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert told["id"] == opening[0]["id"]
    assert done == b"data: [DONE]\n\n"


def test_tensors_ride_on_the_chunk_of_their_step_and_of_their_input() -> None:
    chunks = Chunks(chat(n=2, stream=True, probewire={"tensors": "list"}))
    opening = chunks_of(chunks.item([started("0", "1")]))
    assert [chunk.get("probewire", {}).keys() for chunk in opening] == [{"started"}, set()], "told once"
    step: list[Event] = [frame("1", 0, 1.0), token("0", 0, "a"), frame("1", 0, 2.0, "z.2"), token("1", 0, "b")]
    plain_chunk, carrying = chunks_of(chunks.item(step))
    assert "probewire" not in plain_chunk
    assert [(t["site"], t["data"]) for t in carrying["probewire"]["tensors"]] == [("z.1", [[1.0]]), ("z.2", [[2.0]])]


def test_tensors_without_a_token_ride_on_the_end_or_on_a_chunk_of_their_own() -> None:
    chunks = Chunks(chat(stream=True, probewire={"tensors": "list"}))
    chunks.item([started("input")])
    [alone] = chunks_of(chunks.item([frame("input", 0, 1.0)]))
    assert alone["choices"][0]["delta"] == {"content": ""}
    assert alone["probewire"]["tensors"][0]["data"] == [[1.0]]
    [last] = chunks_of(chunks.item([frame("input", 1, 2.0), Finished("input", "eos", Usage(1, 0))]))
    assert last["choices"][0]["finish_reason"] == "stop"
    assert set(last["probewire"]) == {"tensors", "finished"}


@pytest.mark.parametrize("field", [None, {}])
def test_a_session_that_moved_on_is_told_where_the_request_has_our_field(field: dict[str, Any] | None) -> None:
    chunks = Chunks(chat(stream=True, probewire=field))
    chunks.item([started("input")])
    told = chunks_of(chunks.item([Revised("input", 3, ())]))
    assert [chunk["probewire"]["revised"]["revision"] for chunk in told] == ([] if field is None else [3])


def test_logprobs_of_a_stream_go_on_where_they_were() -> None:
    chunks = Chunks(text_completion({"prompt": "a", "stream": True, "logprobs": 0}))
    chunks.item([started("input")])
    offsets = [
        chunk["choices"][0]["logprobs"]["text_offset"]
        for text in ("ab", "c", "d")
        for chunk in chunks_of(chunks.item([token("input", 0, text)]))
    ]
    assert offsets == [[0], [2], [3]]


def test_a_stream_that_fails_ends_with_the_error() -> None:
    chunks = Chunks(chat(stream=True))
    [told] = chunks_of([chunks.error(Unavailable("gone", retry_after_s=1.0), "req-1")])
    assert (told["error"]["code"], told["error"]["request_id"]) == ("UNAVAILABLE", "req-1")
