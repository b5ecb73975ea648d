"""A whole answer of an inference: sorted events as one JSON object or one safetensors file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors

from probewire.protos.errors import Internal
from probewire.protos.metrics import Measured
from probewire.protos.model import Event, Finished, InputStarted, Started, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.server.api.http.answer import Answer

STARTED = Started(
    "r1",
    "m",
    "f00d",
    "torch",
    "cpu",
    "float32",
    "eager",
    {},
    (),
    (InputStarted("b", (1,), ("x",)), InputStarted("a", (2,), ("y",))),
)


def frame(name: str, hook: int, position: int, value: float) -> TensorFrame:
    tensor = Tensor.of(np.array([[[value]]], dtype=np.float32))
    return TensorFrame(name, hook, f"h{hook}", ("z.1",), (position,), position, tensor)


STEPS: list[list[Event]] = [
    [STARTED],
    [frame("a", 1, 0, 1.0), frame("a", 0, 0, 2.0), Token("a", 0, 7, "one"), frame("b", 0, 0, 3.0)],
    [Token("b", 0, 8, "two"), frame("b", 0, 1, 4.0), Finished("b", "eos", Usage(1, 1))],
    [
        Token("a", 1, 9, " more"),
        Measured("a", Tensor.of(np.array([[0.5]])), (2,)),
        Finished("a", "length", Usage(1, 2)),
    ],
]


def test_events_are_sorted_by_kind_and_captures_by_input_and_hook() -> None:
    answer = Answer.of(STEPS)
    assert [token.text for token in answer.tokens] == ["one", "two", " more"]
    assert [event.input for event in answer.finished] == ["b", "a"]
    assert [(c.key.input, c.key.hook) for c in answer.captures] == [("b", 0), ("a", 0), ("a", 1)]
    assert answer.captures[0].array.tolist() == [[3.0], [4.0]], "the rows of both steps"
    assert answer.text("a") == "one more"
    assert answer.text("nobody") == ""


@pytest.mark.parametrize("n", [0, 2])
def test_an_answer_starts_once(n: int) -> None:
    with pytest.raises(Internal, match=f"the answer started {n} times; it must once"):
        Answer.of([[STARTED] * n, [Token("a", 0, 1, "x")]])


def test_one_json_object_says_it_all() -> None:
    told: dict[str, Any] = json.loads(orjson.dumps(Answer.of(STEPS).json("list"), option=orjson.OPT_SERIALIZE_NUMPY))
    assert list(told) == ["started", "text", "tokens", "measured", "finished", "tensors"]
    assert told["started"]["request_id"] == "r1"
    assert told["text"] == {"a": "one more", "b": "two"}
    assert [token["id"] for token in told["tokens"]] == [7, 8, 9]
    assert told["measured"][0]["values"]["data"] == [[0.5]]
    assert told["tensors"][0] | {"input": "b", "positions": [0, 1], "data": [[3.0], [4.0]]} == told["tensors"][0]
    assert [event["reason"] for event in told["finished"]] == ["eos", "length"]


def test_one_safetensors_file_says_it_all() -> None:
    answer = Answer.of(STEPS)
    data = answer.safetensors()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about = {name: json.loads(text) for name, text in header["__metadata__"].items()}
    arrays = dict(safetensors.deserialize(data))
    assert set(arrays) == set(about["tensors"]) == {"b/z.1", "a/z.1#h0", "a/z.1#h1"}
    assert np.frombuffer(arrays["b/z.1"]["data"], "<f4").tolist() == [3.0, 4.0]
    assert about["tensors"]["a/z.1#h1"] == {
        "input": "a",
        "hook": 1,
        "id": "h1",
        "site": "z.1",
        "part": "",
        "revision": 0,
        "positions": [0],
    }
    whole = json.loads(orjson.dumps(answer.json("list"), option=orjson.OPT_SERIALIZE_NUMPY))
    assert {name: value for name, value in about.items() if name != "tensors"} == {
        name: value for name, value in whole.items() if name != "tensors"
    }


def test_an_answer_that_captured_nothing_is_a_file_without_tensors() -> None:
    data = Answer.of([[STARTED], [Finished("a", "run", Usage(1))]]).safetensors()
    assert dict(safetensors.deserialize(data)) == {}
