"""The binary stream over HTTP: whatever pieces it arrives in, whole or with an error at its end."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from probewire.protos.errors import Internal, ProbewireError, ResourceExhausted, Unavailable
from probewire.protos.model import Event, Finished, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.delimited import delimit, iter_delimited, trailer
from probewire.protos.wire.events import encode_events

EVENTS: list[Event] = [
    Token("input", 0, 65, "A", -0.5),
    TensorFrame("input", 0, "h", ("q.0",), (0,), 0, Tensor.of(np.arange(4, dtype=np.float32).reshape(1, 1, 4))),
    Finished("input", "length", Usage(3, 1)),
]
BODY = b"".join(delimit(message) for event in EVENTS for message in encode_events([event]))


@given(st.lists(st.integers(0, len(BODY) + 4), max_size=12))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    data = BODY + trailer()
    edges = [0, *sorted(cuts), len(data)]
    chunks = [data[a:b] for a, b in pairwise(edges)]
    assert list(iter_delimited(chunks)) == EVENTS


def test_a_frame_of_several_messages_comes_back_whole() -> None:
    big = TensorFrame("input", 0, "h", ("q.0",), (0,), 0, Tensor.of(np.zeros((1, 1, 700_000), np.float32)))
    messages = list(encode_events([big]))
    assert len(messages) > 1
    assert list(iter_delimited([*map(delimit, messages), trailer()])) == [big]


def test_events_before_an_error_are_given_out() -> None:
    stream = iter_delimited([BODY + trailer(ResourceExhausted("too much", retry_after_s=2.5), "id")])
    assert [next(stream) for _ in EVENTS] == EVENTS
    with pytest.raises(ResourceExhausted, match="too much") as caught:
        next(stream)
    assert caught.value.retry_after_s == 2.5


@pytest.mark.parametrize("cut", [0, 1, len(BODY) // 2, len(BODY), len(BODY) + 1])
def test_a_stream_without_its_trailer_was_cut(cut: int) -> None:
    with pytest.raises(Unavailable):
        list(iter_delimited([(BODY + trailer())[:cut]]))


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff\xff\xff", b"\x05hello", BODY + trailer() + b"x", b"\x00\x01x", b"<html>oh no</html>" * 10],
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProbewireError) as caught:
        list(iter_delimited([data]))
    assert isinstance(caught.value, (Internal, Unavailable))
