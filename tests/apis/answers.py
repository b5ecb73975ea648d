"""What a request gave, the same shape whichever API it came through, so that two can be compared to the bit."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probewire.protos.metrics import Measured
from probewire.protos.model import Event, Finished, Started, TensorFrame, Token
from probewire.protos.tensors import Array, Tensor, numpy_dtype
from probewire.protos.wire.assemble import CaptureKey, assemble
from probewire.protos.wire.codec import from_json

__all__ = ["Answer", "Rows", "array_of", "frame_of", "from_events", "require_same"]

TOKEN_FIELDS = ("id", "text", "logprob", "top")
OPENAI_FIELDS = ("logprob",)
"""Its shapes have no ids, and beside a log-probability stands the token's own text, which the answer's may split."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One capture."""

    id: str
    positions: tuple[int, ...]
    array: Array


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Everything that a API tells of a finished request, but its id and how long it took."""

    started: tuple[Any, ...]
    texts: dict[str, str]
    tokens: dict[str, list[Token]]
    arrays: dict[CaptureKey, Rows]
    finished: dict[str, tuple[Any, ...]]
    measured: dict[str, Array]
    """Input → [plan, target] (gradients: [point, 1]), float64."""


def from_events(events: Iterable[Event]) -> Answer:
    """An answer out of the events of the contract."""
    found = list(events)
    [started] = [event for event in found if isinstance(event, Started)]
    tokens: dict[str, list[Token]] = {}
    for event in found:
        if isinstance(event, Token):
            tokens.setdefault(event.input, []).append(event)
    captures = assemble(event for event in found if isinstance(event, TensorFrame))
    return Answer(
        _about(started),
        {name: "".join(token.text for token in given) for name, given in tokens.items()},
        tokens,
        {key: Rows(capture.id, capture.positions, capture.array) for key, capture in captures.items()},
        {event.input: _ending(event) for event in found if isinstance(event, Finished)},
        _metrics(event for event in found if isinstance(event, Measured)),
    )


def from_parts(
    started: dict[str, Any],
    texts: dict[str, str],
    tokens: Sequence[dict[str, Any]],
    arrays: dict[CaptureKey, Rows],
    finished: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]] = (),
) -> Answer:
    """An answer out of the JSON of a whole answer."""
    given: dict[str, list[Token]] = {}
    for item in tokens:
        token = from_json(Token, item)
        given.setdefault(token.input, []).append(token)
    endings = [from_json(Finished, item) for item in finished]
    return Answer(
        _about(from_json(Started, started)),
        texts,
        given,
        arrays,
        {item.input: _ending(item) for item in endings},
        _metrics(from_json(Measured, item) for item in measured),
    )


def _metrics(events: Iterable[Measured]) -> dict[str, Array]:
    """Every plan exactly once, in the order of the request, however they were sent."""
    rows: dict[str, dict[int, Array]] = {}
    for event in events:
        values, own = event.values.numpy(), rows.setdefault(event.input, {})
        for plan, row in zip(event.plans or range(len(values)), values, strict=True):
            assert plan not in own, f"plan {plan} came twice"
            own[plan] = row
    return {name: np.stack([own[plan] for plan in range(len(own))]) for name, own in rows.items()}


def _about(started: Started) -> tuple[Any, ...]:
    return (
        started.model,
        started.model_hash,
        started.backend,
        started.device,
        started.dtype,
        started.attention,
        dict(started.versions),
        started.hooks,
        started.inputs,
    )


def _ending(finished: Finished) -> tuple[Any, ...]:
    return finished.reason, finished.usage, finished.stored


def array_of(tensor: dict[str, Any]) -> Array:
    """The array of {dtype, shape, data}, base64 or lists."""
    dtype, data = numpy_dtype(tensor["dtype"]), tensor["data"]
    array = np.frombuffer(base64.b64decode(data), dtype) if isinstance(data, str) else np.array(data, dtype)
    return array.reshape(tensor["shape"])


def key_of(item: dict[str, Any]) -> CaptureKey:
    """Which capture an entry of `tensors` is of."""
    return CaptureKey(item["input"], item["hook"], item["site"], item["part"])


def rows_of(tensors: Iterable[dict[str, Any]]) -> dict[CaptureKey, Rows]:
    """The captures of a whole answer in JSON."""
    return {key_of(item): Rows(item["id"], tuple(item["positions"]), array_of(item)) for item in tensors}


def frame_of(item: dict[str, Any]) -> TensorFrame:
    """An entry of `tensors` as a frame, for answers that bring a capture in pieces."""
    tensor = Tensor.of(array_of(item)[None])
    return TensorFrame(
        item["input"], item["hook"], item["id"], (item["site"],), tuple(item["positions"]), 0, tensor, item["part"]
    )


def require_same(found: Answer, expected: Answer, *, openai: bool = False) -> None:
    """Fail unless both say the same, arrays to the bit. `openai`: as far as its shapes go."""
    assert found.started == expected.started
    assert found.texts == expected.texts
    assert found.finished == expected.finished
    assert found.measured.keys() == expected.measured.keys()
    for name, values in expected.measured.items():
        assert (found.measured[name].dtype, values.dtype) == (np.float64, np.float64)
        assert found.measured[name].tolist() == values.tolist(), name
    fields = OPENAI_FIELDS if openai else TOKEN_FIELDS
    assert _told(found, fields) == _told(expected, fields)
    assert found.arrays.keys() == expected.arrays.keys()
    for key, rows in expected.arrays.items():
        other = found.arrays[key]
        assert (other.id, other.positions) == (rows.id, rows.positions), key
        assert (other.array.dtype, other.array.shape) == (rows.array.dtype, rows.array.shape), key
        assert other.array.tobytes() == rows.array.tobytes(), key


def _told(answer: Answer, fields: Sequence[str]) -> dict[str, list[tuple[Any, ...]]]:
    return {
        name: [tuple(getattr(token, field) for field in fields) for token in tokens]
        for name, tokens in answer.tokens.items()
    }
