"""Streams of events: packed a step a message, under 1 MiB each, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import Internal
from probewire.protos.events import FrameAssembler, decode_events, encode_events
from probewire.protos.model import (
    Event,
    Finished,
    InputStarted,
    ResolvedHook,
    Started,
    StoredCapture,
    TensorFrame,
    Timings,
    Token,
    TokenLogprob,
    Usage,
)
from probewire.protos.tensors import Tensor
from tests.protos.plans import tensors


def _back(messages: list[bytes]) -> list[Event]:
    assembler, out = FrameAssembler(), list[Event]()
    for data in messages:
        message = pb.Events()
        message.ParseFromString(data)
        out += decode_events(message, assembler)
    return out


def _frame(tensor: Tensor) -> TensorFrame:
    return TensorFrame("in", 3, "mine", ("resid_post.1", "resid_post.2"), (4, 5), 6, tensor, "value", 2)


EVENTS: list[Event] = [
    Started("r", "m", "h", "torch", "cpu", "float32", "sdpa", {"a": "1"}, (ResolvedHook(0, "x", ("embed",)),), (InputStarted("i", (1, 2), ("a", "b"), 9),)),
    Token("i", 0, 5, "hé", -0.5, (TokenLogprob(5, "hé", -0.5),), 1),
    Token("i", 1, 6, ""),
    _frame(Tensor.of(np.arange(12, dtype=np.float32).reshape(2, 2, 3))),
    Finished("i", "stop", Usage(2, 3), Timings(0.1, 0.2, 0.3), (StoredCapture("c", "embed", "i", (0,), "float32", (1, 2), "m"),)),
]


def test_every_event_survives_in_one_message() -> None:
    messages = list(encode_events(EVENTS))
    assert len(messages) == 1
    assert _back(messages) == EVENTS


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(1, 2, 3), max_size=5))
def test_frames_survive(found: list[Tensor]) -> None:
    frames: list[Event] = [_frame(tensor) for tensor in found]
    assert _back(list(encode_events(frames))) == frames


@pytest.mark.parametrize("n_bytes", [1 << 20, (1 << 20) - (16 << 10), 5_000_001])
def test_large_frames_travel_in_messages_under_one_mebibyte(n_bytes: int) -> None:
    frame = _frame(Tensor.of(np.random.default_rng(0).integers(0, 255, n_bytes).astype(np.uint8)))
    messages = list(encode_events([frame, EVENTS[1]]))
    assert max(map(len, messages)) <= 1 << 20
    assert _back(messages) == [frame, EVENTS[1]]


def test_raw_frames_are_plain_protobuf() -> None:
    """The hand-written bytes parse to the fields of the contract, nothing unknown."""
    [data] = encode_events([EVENTS[3]])
    message = pb.Events()
    message.ParseFromString(data)
    assert message.events[0].tensor_frame.dtype == "float32"
    assert message.SerializeToString(deterministic=True)[:1] == b"\x0a"


def test_a_lost_chunk_is_noticed() -> None:
    frame = _frame(Tensor.of(np.zeros(3_000_000, dtype=np.uint8)))
    messages = list(encode_events([frame]))
    with pytest.raises(Internal, match="lost a chunk"):
        _back([messages[0], messages[2]])
