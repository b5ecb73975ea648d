"""Event streams as messages: what is read is what was written, whether or not tensor bytes are cut out on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import Internal
from probewire.protos.model import Event, Finished, InputStarted, Started, TensorFrame, Token, TokenLogprob, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.events import (
    LARGE_MESSAGE_BYTES,
    MAX_CHUNK_BYTES,
    FrameAssembler,
    decode_events,
    encode_events,
    read_events,
)

STARTED = Started("r", "m", "", "torch", "cpu", "float32", "sdpa", {}, (), (InputStarted("input", (1,), ("a",)),))
FINISHED = Finished("input", "length", Usage(3, 2))


def frame(n_bytes: int, n_positions: int = 3, part: str = "") -> TensorFrame:
    values = np.arange(n_bytes, dtype=np.uint8)[None]
    return TensorFrame("input", 0, "h", ("embed",), tuple(range(n_positions)), 4, Tensor.of(values), part)


FRAMES = st.builds(
    frame,
    st.sampled_from([0, 1, 100, LARGE_MESSAGE_BYTES, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 1, 3 * MAX_CHUNK_BYTES + 7]),
    st.integers(0, 300),
    st.sampled_from(["", "value"]),
)
TOKENS = st.builds(Token, st.just("input"), st.integers(0, 5), st.integers(0, 50_000), st.text(max_size=4))
EVENTS = st.lists(st.one_of(FRAMES, TOKENS), max_size=6).map(lambda found: [STARTED, *found, FINISHED])


@settings(deadline=None, max_examples=40)
@given(EVENTS)
def test_what_is_read_is_what_was_written(events: list[Event]) -> None:
    messages = list(encode_events(events))
    parsing, reading = FrameAssembler(), FrameAssembler()
    assert all(len(message) <= 1 << 20 for message in messages)
    assert [e for m in messages for e in read_events(m, reading)] == events
    assert [e for m in messages for e in decode_events(pb.Events.FromString(m), parsing)] == events


def test_a_large_message_of_another_writer_is_read_too() -> None:
    """Protobuf writes a frame's fields in the order of their numbers, and may put several events in one message."""
    token = Token("input", 0, 7, "x", -0.5, (TokenLogprob(7, "x", -0.5, b"\xf0\x9f"),))
    events: list[Event] = [frame(2 * LARGE_MESSAGE_BYTES), token, frame(3), FINISHED]
    message = pb.Events.FromString(b"".join(encode_events(events))).SerializeToString()
    assert list(read_events(message, FrameAssembler())) == events


@pytest.mark.parametrize("filler", [0, LARGE_MESSAGE_BYTES], ids=["small", "large"])
@pytest.mark.parametrize("garbage", [b"\x0a\xff\xff\xff\x7f", b"\x0b", b"\xff", b"\x0a\x05\x1a\x09\x7a", b"\x00"])
def test_garbage_is_refused(garbage: bytes, filler: int) -> None:
    with pytest.raises(Internal, match="not an Events message"):
        list(read_events(garbage + b"\xff" * filler, FrameAssembler()))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_chunk_is_noticed(lost: int) -> None:
    messages = list(encode_events([frame(3 * MAX_CHUNK_BYTES)]))
    del messages[lost]
    assembler = FrameAssembler()
    with pytest.raises(Internal, match="lost a chunk"):
        [event for message in messages for event in read_events(message, assembler)]
