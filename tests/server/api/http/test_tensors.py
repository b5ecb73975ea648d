"""Arrays on their way out: JSON of both styles, names, and safetensors files."""

from __future__ import annotations

import base64
import json
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
import safetensors

from probewire.protos.errors import InvalidArgument
from probewire.protos.model import TensorFrame
from probewire.protos.tensors import Tensor
from probewire.protos.wire.assemble import AssembledCapture, CaptureKey
from probewire.protos.wire.codec import from_json
from probewire.server.api.http.tensors import (
    array_json,
    capture_json,
    capture_names,
    frame_json,
    safetensors_file,
    style_of,
)


def written(data: Any) -> Any:
    """As a reader of the answer gets it."""
    return json.loads(orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY))


def capture(key: CaptureKey, hook_id: str = "h") -> AssembledCapture:
    return AssembledCapture(key, hook_id, (2, 5), np.array([[1.0], [2.0]], dtype=np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, ml_dtypes.bfloat16])
def test_base64_holds_every_bit(dtype: Any) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    told = written(array_json(array, "base64"))
    assert told["shape"] == [2, 3]
    assert base64.b64decode(told["data"]) == array.tobytes()
    assert told["dtype"] == np.dtype(dtype).name


def test_base64_of_rows_that_lie_apart_is_in_c_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert base64.b64decode(array_json(array.T, "base64")["data"]) == np.ascontiguousarray(array.T).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.bool_, ml_dtypes.bfloat16])
def test_lists_are_numbers_of_the_dtype_that_is_named(dtype: Any) -> None:
    told = written(array_json(np.array([[0, 1], [1, 0]]).astype(dtype).T, "list"))
    assert told["data"] == [[0, 1], [1, 0]]
    assert told["dtype"] == np.dtype(dtype).name


def test_numbers_that_json_lacks_are_null_in_lists() -> None:
    array = np.array([np.nan, np.inf, -np.inf, 1.0], dtype=np.float32)
    assert written(array_json(array, "list"))["data"] == [None, None, None, 1.0]
    assert written(array_json(array.astype(ml_dtypes.bfloat16), "list"))["data"] == [None, None, None, 1.0]


def test_an_array_without_axes_is_a_number() -> None:
    assert written(array_json(np.array(2.5, dtype=np.float32), "list")) == {
        "dtype": "float32",
        "shape": [],
        "data": 2.5,
    }


def test_an_array_without_rows_keeps_its_shape() -> None:
    assert written(array_json(np.empty((0, 4), dtype=np.float32), "list")) == {
        "dtype": "float32",
        "shape": [0, 4],
        "data": [],
    }


def test_the_style_is_base64_unless_lists_are_asked_for() -> None:
    assert [style_of(value) for value in (None, "base64", "list")] == ["base64", "base64", "list"]


@pytest.mark.parametrize("value", ["", "lists", "LIST", 1, True, {}])
def test_another_style_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        style_of(value)
    assert caught.value.message == f"tensors {value!r}; allowed: base64, list"


def test_a_capture_says_where_it_is_from() -> None:
    told = written(capture_json(capture(CaptureKey("a", 3, "z.1", "value", 7), "mine"), "list"))
    assert told == {
        "input": "a",
        "hook": 3,
        "id": "mine",
        "site": "z.1",
        "part": "value",
        "positions": [2, 5],
        "revision": 7,
        "dtype": "float32",
        "shape": [2, 1],
        "data": [[1.0], [2.0]],
    }


def test_a_frame_has_the_same_fields_in_both_styles() -> None:
    tensor = Tensor.of(np.array([[[1.0, 2.0]]], dtype=np.float32))
    frame = TensorFrame("a", 1, "h", ("z.1",), (4,), 2, tensor, "gradient", 5, 3)
    whole, lists = written(frame_json(frame, "base64")), written(frame_json(frame, "list"))
    assert whole.keys() == lists.keys()
    assert whole | {"tensor": 0} == lists | {"tensor": 0}
    assert from_json(TensorFrame, whole) == frame
    assert from_json(TensorFrame, lists) == frame


def test_a_capture_is_named_by_input_and_site() -> None:
    a, b = capture(CaptureKey("x", 0, "z.1", "")), capture(CaptureKey("y", 0, "z.1", ""))
    assert capture_names([a, b]) == {"x/z.1": a, "y/z.1": b}


def test_hooks_that_read_the_same_site_are_told_apart() -> None:
    named = capture(CaptureKey("x", 0, "z.1", ""), "first")
    nameless = capture(CaptureKey("x", 1, "z.1", ""), "")
    alone = capture(CaptureKey("x", 1, "z.2", ""), "first")
    assert capture_names([named, nameless, alone]) == {"x/z.1#first": named, "x/z.1#1": nameless, "x/z.2": alone}


def test_parts_of_one_hook_need_no_more_than_their_names() -> None:
    value, index = (capture(CaptureKey("x", 0, "z.1", part)) for part in ("value", "index"))
    assert capture_names([value, index]) == {"x/z.1/value": value, "x/z.1/index": index}


def test_one_hook_that_was_several_in_turn_is_told_apart_by_revision() -> None:
    old, new = (capture(CaptureKey("x", 0, "z.1", "", revision)) for revision in (1, 3))
    other = capture(CaptureKey("x", 1, "z.1", ""), "other")
    assert capture_names([old, new]) == {"x/z.1@r1": old, "x/z.1@r3": new}
    assert list(capture_names([old, new, other])) == ["x/z.1#h@r1", "x/z.1#h@r3", "x/z.1#other"]


def test_a_safetensors_file_holds_arrays_and_json_texts() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array([1.5], dtype=ml_dtypes.bfloat16)}
    data = safetensors_file(arrays, {"text": {"x": "é"}, "n": 3})
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert {name: json.loads(text) for name, text in header["__metadata__"].items()} == {"text": {"x": "é"}, "n": 3}
    found = dict(safetensors.deserialize(data))
    assert (found["a"]["shape"], found["a"]["dtype"]) == ([3, 2], "F32")
    assert bytes(found["a"]["data"]) == np.ascontiguousarray(arrays["a"]).tobytes()
    assert (found["b"]["dtype"], bytes(found["b"]["data"])) == ("BF16", arrays["b"].tobytes())


def test_an_array_without_axes_has_none_in_a_file() -> None:
    found = dict(safetensors.deserialize(safetensors_file({"a": np.array(2.5, dtype=np.float32)}, {})))
    assert found["a"]["shape"] == []
