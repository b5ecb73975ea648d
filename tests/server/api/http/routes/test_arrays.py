"""Single tensors over HTTP: every name, dtype and shape, as JSON or as a file."""

from __future__ import annotations

import base64
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_model import FakeOperations
from rest_caller import SAFETENSORS, Caller, error_of, safetensors_of

from probewire.protos.errors import NotFound
from probewire.protos.model import StoredCapture
from probewire.protos.tensors import Tensor
from probewire.server.api.http.app import create_app

WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "model.layers.0/odd.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16),
    "scalar": np.array(2.5, dtype=np.float32),
    "empty": np.empty((0, 4), dtype=np.float16),
    "big": np.arange(100_000, dtype=np.int64),
}


class Weights(FakeOperations):
    """Holds tensors of every kind, and notes what it was asked for."""

    asked: list[tuple[str, str]]

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        self.asked.append(("", model))
        return {name: array.shape for name, array in WEIGHTS.items()}

    async def weights(self, name: str, model: str) -> Tensor:
        self.asked.append((name, model))
        if name not in WEIGHTS:
            raise NotFound(f"no weight {name!r}")
        return Tensor.of(WEIGHTS[name])


@pytest.fixture
def call() -> Caller:
    operations = Weights()
    operations.asked = []
    array = np.array([[1.0, np.nan]], dtype=np.float32)
    capture = StoredCapture("cap-1/é", "z.1", "x", (4,), "float32", (1, 2), "fake/model", 1.0, 2.0)
    operations.stored["cap-1/é"] = capture, Tensor.of(array)
    return Caller(create_app(operations, version="1"), operations)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "scalar"])
def test_a_weight_is_told_to_the_bit(call: Caller, name: str) -> None:
    array = WEIGHTS[name]
    told = call.get(f"/v1/weights/{name}").json()
    assert (told["name"], told["dtype"], told["shape"]) == (name, array.dtype.name, list(array.shape))
    assert base64.b64decode(told["data"]) == array.tobytes()
    found, about = safetensors_of(call.get(f"/v1/weights/{name}", headers=SAFETENSORS))
    assert about == {"about": {"name": name}}
    assert bytes(found[name]["data"]) == array.tobytes()
    assert list(found[name]["shape"]) == list(array.shape)


def test_a_weight_may_be_lists(call: Caller) -> None:
    told = call.get("/v1/weights/half?tensors=list").json()
    assert (told["dtype"], told["data"]) == ("bfloat16", [1.5, -2.0])
    told = call.get("/v1/weights/scalar?tensors=list").json()
    assert (told["shape"], told["data"]) == ([], 2.5)


def test_names_come_with_their_shapes(call: Caller) -> None:
    assert call.get("/v1/weights").json() == {"weights": {name: list(a.shape) for name, a in WEIGHTS.items()}}


def test_the_model_may_be_named(call: Caller) -> None:
    operations: Any = call.operations
    call.get("/v1/weights?model=org%2Fm")
    call.get("/v1/weights/half?model=org%2Fm&tensors=base64")
    assert operations.asked == [("", "org/m"), ("half", "org/m")]


def test_a_capture_tells_where_it_is_from(call: Caller) -> None:
    told = call.get("/v1/captures/cap-1%2F%C3%A9?tensors=list").json()
    assert told == {
        "id": "cap-1/é",
        "site": "z.1",
        "input": "x",
        "positions": [4],
        "dtype": "float32",
        "shape": [1, 2],
        "model": "fake/model",
        "created_s": 1.0,
        "expires_s": 2.0,
        "variants": [],
        "data": [[1.0, None]],
    }
    found, about = safetensors_of(call.get("/v1/captures/cap-1%2F%C3%A9", headers=SAFETENSORS))
    assert set(found) == {"cap-1/é"}
    assert about["about"]["positions"] == [4]


@pytest.mark.parametrize("path", ["/v1/weights/half", "/v1/captures/cap-1%2F%C3%A9"])
@pytest.mark.parametrize(
    ("query", "accept", "told"),
    [
        ("", "text/event-stream", "one tensor is not a stream; accept application/json or application/safetensors"),
        ("", "application/x-ndjson", "one tensor is not a stream"),
        ("", "application/x-protobuf", "one tensor is not a stream"),
        ("", "text/html", "nothing that Accept 'text/html' allows can be sent"),
        ("?tensors=hex", "", "tensors 'hex'; allowed: base64, list"),
        ("?style=list", "", "unknown query parameters ['style']; allowed: model, tensors"),
        ("?model=a&model=b", "", "a query parameter is given twice"),
    ],
)
def test_what_cannot_be_sent_is_refused(call: Caller, path: str, query: str, accept: str, told: str) -> None:
    response = call.get(path + query, headers={"accept": accept})
    assert response.status_code == 422
    assert error_of(response)["message"].startswith(told)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_capture_that_is_not_there_is_a_404(call: Caller, method: str) -> None:
    response = call(method, "/v1/captures/cap-2")
    assert (response.status_code, error_of(response)["message"]) == (404, "no capture 'cap-2'")


def test_a_deleted_capture_is_gone(call: Caller) -> None:
    assert call("DELETE", "/v1/captures/cap-1%2F%C3%A9?tensors=list").status_code == 422
    assert call("DELETE", "/v1/captures/cap-1%2F%C3%A9").json() == {"status": "deleted", "id": "cap-1/é"}
    assert call.get("/v1/captures").json() == {"captures": []}
