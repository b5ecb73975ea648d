"""Our events in NeuroScope's shapes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson

from probewire.protos.errors import NotFound
from probewire.protos.model import Event, Finished, InputStarted, Started, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.assemble import AssembledCapture, CaptureKey
from probewire.server.api.http.answer import Answer
from probewire.server.api.neuroscope.answer import ActivationLines, activations_of, choice_of
from probewire.server.api.neuroscope.hooks import NeuroHook, place_of

MLP = NeuroHook("mine", place_of("transformer.h.0", "mlp"), capture_input=True)
QUERY = NeuroHook("q", place_of("model.layers.2.attn", "query"))
SOURCES = [(MLP, True), (MLP, False), (QUERY, False)]
SITES = ("mlp_in.0", "mlp_out.0", "q.2")


def frame(hook: int, position: int, value: float) -> TensorFrame:
    tensor = Tensor.of(np.array([[[value, np.nan]]], dtype=np.float32))
    return TensorFrame("input", hook, f"hook{hook}", (SITES[hook],), (position,), position, tensor)


def capture(hook: int, value: float) -> AssembledCapture:
    array = np.array([[value], [value + 1]], dtype=np.float32)
    return AssembledCapture(CaptureKey("input", hook, SITES[hook % 3], ""), "x", (3, 4), array)


def plain(data: object) -> Any:
    return json.loads(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


def lines_of(*steps: list[Event]) -> list[list[dict[str, Any]]]:
    lines = ActivationLines(SOURCES)
    found = [lines.item(step) for step in steps]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for step in found for line in step)
    return [[json.loads(line) for line in step] for step in found]


def test_a_choice_is_the_text_and_why_it_ended() -> None:
    inputs = (InputStarted("input", (1,), ("x",)),)
    finished = Finished("input", "eos", Usage(1, 2))
    events: list[Event] = [
        Started("r1", "m", "f00d", "torch", "cpu", "float32", "eager", {}, (), inputs),
        Token("input", 0, 1, "Hel"),
        Token("other", 0, 1, "no"),
        Token("input", 1, 2, "lo"),
        finished,
    ]
    assert choice_of(Answer.of([events]), finished) == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello"},
        "finish_reason": "stop",
    }


def test_activations_are_entries_by_hook_with_a_batch_axis_of_one() -> None:
    told = plain(activations_of([capture(2, 5.0), capture(1, 3.0), capture(0, 1.0)], SOURCES))
    assert list(told) == ["mine", "q"]
    assert [entry["is_input"] for entry in told["mine"]] == [True, False]
    assert told["mine"][1] == {
        "hook_id": "mine",
        "layer_name": "transformer.h.0",
        "component": "mlp",
        "shape": [1, 2, 1],
        "dtype": "float32",
        "is_input": False,
        "positions": [3, 4],
        "data": [[[3.0], [4.0]]],
    }
    assert (told["q"][0]["layer_name"], told["q"][0]["data"]) == ("model.layers.2.attn", [[[5.0], [6.0]]])


def test_hooks_may_stand_behind_others_in_the_plan() -> None:
    told = activations_of([capture(5, 1.0)], SOURCES, first_hook=3)
    assert list(told) == ["q"]


def test_a_step_is_one_line_with_its_text_and_its_activations() -> None:
    [[line]] = lines_of([frame(0, 2, 1.0), frame(2, 2, 7.0), Token("input", 0, 1, "a"), Token("input", 1, 1, "b")])
    assert line["choices"] == [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}]
    assert {name: [entry["data"] for entry in entries] for name, entries in line["activations"].items()} == {
        "mine": [[[[1.0, None]]]],
        "q": [[[[7.0, None]]]],
    }


def test_the_last_line_has_the_reason() -> None:
    [[last], [alone]] = lines_of(
        [Token("input", 0, 1, "a"), Finished("input", "length", Usage(1, 1))],
        [Finished("input", "eos", Usage(1, 1))],
    )
    assert last["choices"] == [{"index": 0, "delta": {"content": "a"}, "finish_reason": "length"}]
    assert alone["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert last["activations"] == {}


def test_a_step_that_brought_only_activations_is_a_line_and_an_empty_one_is_none() -> None:
    started = Started("r1", "m", "f00d", "torch", "cpu", "float32", "eager", {}, (), ())
    [first, only, empty] = lines_of([started], [frame(1, 0, 1.0)], [])
    assert first == empty == []
    assert only[0]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": None}
    assert list(only[0]["activations"]) == ["mine"]


def test_an_error_is_the_last_line_and_a_good_end_needs_none() -> None:
    lines = ActivationLines(SOURCES)
    told = json.loads(lines.error(NotFound("no model"), "req-1"))
    assert (told["error"]["code"], told["error"]["request_id"]) == ("NOT_FOUND", "req-1")
    assert lines.end() == b""
