"""Streams that carry tensors, as bytes: encoded from operations, bounded, and closed at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from fake_model import FakeOperations

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import InvalidArgument, NotFound
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    Input,
    Sampling,
    Started,
    StoredCapture,
    TensorFrame,
)
from probewire.protos.operations import BY_CALL
from probewire.protos.tensors import Tensor
from probewire.protos.wire.codec import to_proto
from probewire.protos.wire.events import FrameAssembler, read_events
from probewire.server.streams import LARGE_REQUEST_BYTES, EncodedStreams, closing, off_the_loop

MIB = 1 << 20


def messages_of(operations: Any, call: str, request: bytes) -> list[bytes]:
    async def scenario() -> list[bytes]:
        return [piece async for piece in EncodedStreams(operations).stream(BY_CALL[call], request)]

    return asyncio.run(scenario())


def events_of(messages: list[bytes]) -> list[Event]:
    frames = FrameAssembler()
    return [event for message in messages for event in read_events(message, frames)]


def generation(text: str, n: int = 2) -> bytes:
    return to_proto(GenerateRequest((Input(text),), sampling=Sampling(max_new_tokens=n))).SerializeToString()


class Stored(FakeOperations):
    """Holds one big capture and one big weight."""

    tensor = Tensor.of(np.arange(600_000, dtype=np.float32).reshape(1000, 600))

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        if capture_id != "cap-1":
            raise NotFound(f"no capture {capture_id!r}")
        return StoredCapture("cap-1", "resid_post.1", "x", tuple(range(1000)), "float32", (1, 1000, 600)), Tensor(
            "float32", (1, 1000, 600), self.tensor.data
        )

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        return {"w": (1000, 600), "empty": (0, 3)}

    async def weights(self, name: str, model: str) -> Tensor:
        return self.tensor if name == "w" else Tensor("float32", (0, 3), b"")


def test_a_generations_events_come_in_order() -> None:
    operations = FakeOperations()
    found = events_of(messages_of(operations, "generate", generation("Hi")))
    assert [type(event) for event in (found[0], found[-1])] == [Started, Finished]
    [asked] = operations.requests
    assert isinstance(asked, GenerateRequest)
    assert asked.inputs[0].text == "Hi"


def test_a_request_that_is_no_message_is_refused() -> None:
    for call in ("generate", "weights", "capture"):
        with pytest.raises(InvalidArgument):
            messages_of(Stored(), call, b"\xff\xff\xff")


def test_an_error_of_the_operation_is_raised_behind_what_came_before() -> None:
    came: list[bytes] = []

    async def read() -> None:
        stream = EncodedStreams(FakeOperations()).stream(BY_CALL["generate"], generation("raise:NOT_FOUND@1"))
        async for piece in stream:
            came.append(piece)  # noqa: PERF401 - what came before the error is kept

    with pytest.raises(NotFound, match="told to"):
        asyncio.run(read())
    assert len(came) == 2, "started, and one token"


def test_closing_the_bytes_cancels_the_request() -> None:
    operations = FakeOperations()

    async def scenario() -> None:
        stream: Any = EncodedStreams(operations).stream(BY_CALL["generate"], generation("hang@1"))
        await anext(stream)
        assert operations.running == 1
        await stream.aclose()

    asyncio.run(scenario())
    assert (operations.running, operations.cancelled) == (0, 1)


def test_weights_come_in_pieces_of_under_a_mebibyte_that_join_to_the_tensor() -> None:
    messages = messages_of(Stored(), "weights", pb.WeightsRequest(name="w").SerializeToString())
    assert len(messages) == 3
    assert max(map(len, messages)) < MIB
    chunks = [pb.WeightChunk.FromString(message) for message in messages]
    assert b"".join(chunk.data for chunk in chunks) == Stored.tensor.data
    whole = bytearray(len(Stored.tensor.data))
    for chunk in reversed(chunks):
        assert (chunk.name, chunk.dtype, list(chunk.shape)) == ("w", "float32", [1000, 600])
        whole[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
    assert bytes(whole) == Stored.tensor.data


def test_a_weight_without_numbers_is_one_piece() -> None:
    [message] = messages_of(Stored(), "weights", pb.WeightsRequest(name="empty").SerializeToString())
    chunk = pb.WeightChunk.FromString(message)
    assert (chunk.name, list(chunk.shape), chunk.data) == ("empty", [0, 3], b"")


def test_without_a_name_weights_are_listed() -> None:
    chunks = [pb.WeightChunk.FromString(m) for m in messages_of(Stored(), "weights", b"")]
    assert [(c.name, tuple(c.shape), c.data) for c in chunks] == [("w", (1000, 600), b""), ("empty", (0, 3), b"")]


def test_a_stored_capture_comes_as_the_frame_it_was() -> None:
    messages = messages_of(Stored(), "capture", pb.CaptureRequest(id="cap-1").SerializeToString())
    assert len(messages) == 3
    assert max(map(len, messages)) < MIB
    [frame] = events_of(messages)
    assert isinstance(frame, TensorFrame)
    assert (frame.input, frame.id, frame.sites, len(frame.positions)) == ("x", "cap-1", ("resid_post.1",), 1000)
    assert frame.tensor == Tensor("float32", (1, 1000, 600), Stored.tensor.data)


def test_a_capture_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFound, match="no capture 'x'"):
        messages_of(Stored(), "capture", pb.CaptureRequest(id="x").SerializeToString())


def test_a_stream_is_closed_on_leaving_whatever_the_reason() -> None:
    ended: list[str] = []

    async def stream() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.append("closed")

    async def left_early() -> None:
        async with closing(stream()) as opened:
            assert await anext(opened) == 1

    async def failed() -> None:
        async with closing(stream()) as opened:
            await anext(opened)
            raise ZeroDivisionError

    asyncio.run(left_early())
    with pytest.raises(ZeroDivisionError):
        asyncio.run(failed())
    assert ended == ["closed", "closed"]


def test_what_cannot_be_closed_is_left_alone() -> None:
    class Plain(AsyncIterator[int]):
        async def __anext__(self) -> int:
            raise StopAsyncIteration

    async def scenario() -> list[int]:
        async with closing(Plain()) as plain:
            return [item async for item in plain]

    assert asyncio.run(scenario()) == []


def test_only_a_large_request_is_read_off_the_event_loop() -> None:
    async def scenario() -> tuple[int, int]:
        small = await off_the_loop(bytes(LARGE_REQUEST_BYTES), threading.get_ident)
        return small, await off_the_loop(bytes(LARGE_REQUEST_BYTES + 1), threading.get_ident)

    small, large = asyncio.run(scenario())
    assert small == threading.get_ident() != large
