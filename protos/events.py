"""Events as `Events` messages: the streams of Generate and Run, packed a step a message, under 1 MiB each.

Frames are written as raw protobuf (their bytes are copied once) and reassembled on the way in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import probewire_pb2 as pb
from .errors import Internal
from .model import Event, Finished, Started, TensorFrame, Token
from .tensors import Tensor
from .wire import from_proto, to_proto

__all__ = ["MAX_CHUNK_BYTES", "FrameAssembler", "decode_events", "encode_events", "nbytes"]

MAX_CHUNK_BYTES = (1 << 20) - (16 << 10)
"""Tensor bytes in one message; leaves room for names so that a message stays under 1 MiB."""

_EVENTS_TAG = b"\x0a"  # Events.events = 1, length-delimited
_FRAME_TAG = b"\x1a"  # Event.tensor_frame = 3
_DATA_TAG = b"\x7a"  # TensorFrame.data = 15


def nbytes(event: Event) -> int:
    """About how much memory an event holds, for budgets."""
    return 256 + (len(event.tensor.data) if isinstance(event, TensorFrame) else 0)


def encode_events(events: Iterable[Event]) -> Iterator[bytes]:
    """Serialised `Events` messages, as few as fit under 1 MiB each."""
    parts: list[bytes] = []
    size = 0
    for event in events:
        for piece in _pieces(event):
            if size + len(piece) > 1 << 20 and parts:
                yield b"".join(parts)
                parts, size = [], 0
            parts.append(piece)
            size += len(piece)
    if parts:
        yield b"".join(parts)


def _pieces(event: Event) -> Iterator[bytes]:
    if isinstance(event, TensorFrame):
        yield from _frame_pieces(event)
        return
    message = pb.Event()
    if isinstance(event, Token):
        _fill_token(message.token, event)
    elif isinstance(event, Started):
        message.started.CopyFrom(to_proto(event))
    else:
        message.finished.CopyFrom(to_proto(event))
    body = message.SerializeToString()
    yield _EVENTS_TAG + _varint(len(body)) + body


def _fill_token(message: pb.Token, event: Token) -> None:
    message.input, message.index, message.id = event.input, event.index, event.id
    message.text, message.revision = event.text, event.revision
    if event.logprob is not None:
        message.logprob = event.logprob
    for top in event.top:
        message.top.add(id=top.id, text=top.text, logprob=top.logprob)


def _frame_pieces(frame: TensorFrame) -> Iterator[bytes]:
    data = memoryview(frame.tensor.data)
    chunks = max(1, -(-len(data) // MAX_CHUNK_BYTES))
    for chunk in range(chunks):
        if chunk == 0:
            head = pb.TensorFrame(
                input=frame.input,
                hook=frame.hook,
                id=frame.id,
                sites=frame.sites,
                positions=frame.positions,
                step=frame.step,
                revision=frame.revision,
                part=frame.part,
                dtype=frame.tensor.dtype,
                shape=frame.tensor.shape,
                chunks=chunks,
            ).SerializeToString()
        else:
            head = pb.TensorFrame(chunk=chunk).SerializeToString()
        piece = data[chunk * MAX_CHUNK_BYTES : (chunk + 1) * MAX_CHUNK_BYTES]
        tail = _DATA_TAG + _varint(len(piece))
        frame_size = len(head) + len(tail) + len(piece)
        frame_head = _FRAME_TAG + _varint(frame_size)
        yield b"".join((_EVENTS_TAG, _varint(len(frame_head) + frame_size), frame_head, head, tail, piece))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class FrameAssembler:
    """Joins the chunks of large frames; one a stream."""

    def __init__(self) -> None:
        self._head: pb.TensorFrame | None = None
        self._chunks: list[bytes] = []

    def add(self, message: pb.TensorFrame) -> TensorFrame | None:
        """The whole frame once its last chunk is here, else None."""
        if message.chunks > 1:
            self._head, self._chunks = message, [message.data]
            return None
        if message.chunk == 0:
            return _frame(message, message.data)
        if self._head is None or message.chunk != len(self._chunks):
            raise Internal("the stream lost a chunk of a tensor frame")
        self._chunks.append(message.data)
        if len(self._chunks) < self._head.chunks:
            return None
        frame = _frame(self._head, b"".join(self._chunks))
        self._head, self._chunks = None, []
        return frame


def _frame(message: pb.TensorFrame, data: bytes) -> TensorFrame:
    return TensorFrame(
        input=message.input,
        hook=message.hook,
        id=message.id,
        sites=tuple(message.sites),
        positions=tuple(message.positions),
        step=message.step,
        tensor=Tensor(message.dtype, tuple(message.shape), data),
        part=message.part,
        revision=message.revision,
    )


def _token(message: pb.Token) -> Token:
    return from_proto(Token, message)


def decode_events(message: pb.Events, assembler: FrameAssembler) -> Iterator[Event]:
    """The events of one message; frames still missing chunks wait in the assembler."""
    for event in message.events:
        kind = event.WhichOneof("kind")
        if kind == "tensor_frame":
            frame = assembler.add(event.tensor_frame)
            if frame is not None:
                yield frame
        elif kind == "token":
            yield _token(event.token)
        elif kind == "started":
            yield from_proto(Started, event.started)
        elif kind == "finished":
            yield from_proto(Finished, event.finished)
