"""Events as `Events` messages: the streams of inference, packed a step a message, under 1 MiB each.

Frames are written as raw protobuf (their bytes are copied once) and reassembled on the way in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO

from google.protobuf.message import DecodeError

from .. import probewire_pb2 as pb
from ..errors import Internal
from ..metrics import Measured
from ..model import Event, Finished, Revised, Started, TensorFrame, Token, TokenLogprob
from ..tensors import Tensor
from .codec import from_proto, to_proto
from .varint import read_varint, varint

__all__ = [
    "MAX_CHUNK_BYTES",
    "FrameAssembler",
    "Tally",
    "decode_events",
    "encode_events",
    "nbytes",
    "read_events",
    "tally",
]

MAX_CHUNK_BYTES = (1 << 20) - (16 << 10)
"""Tensor bytes in one message; leaves room for names so that a message stays under 1 MiB."""

LARGE_MESSAGE_BYTES = 64 << 10
"""From here on tensor bytes are cut out of a message and not parsed with it, which spares two copies of them."""

_EVENTS_TAG = b"\x0a"  # Events.events = 1, length-delimited
_TOKEN_TAG = b"\x12"  # Event.token = 2
_FINISHED_TAG = b"\x22"  # Event.finished = 4
_FRAME_TAG = b"\x1a"  # Event.tensor_frame = 3
_DATA_TAG = b"\x7a"  # TensorFrame.data = 15

_KINDS: dict[str, type[Event]] = {"started": Started, "revised": Revised, "measured": Measured, "finished": Finished}
_FIELDS = {cls: kind for kind, cls in _KINDS.items()}
"""Of `Event`, for those that are written and read as any message; frames and tokens are by hand, for speed."""


def nbytes(event: Event) -> int:
    """About how much memory an event holds, for budgets."""
    if isinstance(event, Measured):
        return 256 + len(event.values.data)
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
    else:
        getattr(message, _FIELDS[type(event)]).CopyFrom(to_proto(event))
    body = message.SerializeToString()
    yield _EVENTS_TAG + varint(len(body)) + body


def _fill_token(message: pb.Token, event: Token) -> None:
    message.input, message.index, message.id = event.input, event.index, event.id
    message.text, message.revision = event.text, event.revision
    if event.logprob is not None:
        message.logprob = event.logprob
    for top in event.top:
        message.top.add(id=top.id, text=top.text, logprob=top.logprob, raw=top.raw)


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
                hook_revision=frame.hook_revision,
            ).SerializeToString()
        else:
            head = pb.TensorFrame(chunk=chunk).SerializeToString()
        piece = data[chunk * MAX_CHUNK_BYTES : (chunk + 1) * MAX_CHUNK_BYTES]
        tail = _DATA_TAG + varint(len(piece))
        frame_size = len(head) + len(tail) + len(piece)
        frame_head = _FRAME_TAG + varint(frame_size)
        yield b"".join((_EVENTS_TAG, varint(len(frame_head) + frame_size), frame_head, head, tail, piece))


class FrameAssembler:
    """Joins the chunks of large frames as they come; one a stream."""

    def __init__(self) -> None:
        self._head: pb.TensorFrame | None = None
        self._next = 0
        self._data = BytesIO()

    def add(self, message: pb.TensorFrame, data: bytes | memoryview | None = None) -> TensorFrame | None:
        """The whole frame once its last chunk is here, else None. `data`: where it was cut out of the message."""
        data = message.data if data is None else data
        if message.chunks > 1:
            self._head, self._next, self._data = message, 0, BytesIO()
        elif message.chunk == 0:
            return _frame(message, bytes(data))
        if self._head is None or message.chunk != self._next:
            raise Internal("the stream lost a chunk of a tensor frame")
        self._next += 1
        self._data.write(data)
        if self._next < self._head.chunks:
            return None
        frame = _frame(self._head, self._data.getvalue())
        self._head, self._data = None, BytesIO()
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
        hook_revision=message.hook_revision,
    )


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
        elif kind is not None:
            yield from_proto(_KINDS[kind], getattr(event, kind))


def _token(message: pb.Token) -> Token:
    """As `from_proto`, written out: every step of every stream brings one."""
    return Token(
        input=message.input,
        index=message.index,
        id=message.id,
        text=message.text,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=tuple(TokenLogprob(top.id, top.text, top.logprob, top.raw) for top in message.top),
        revision=message.revision,
    )


def read_events(data: bytes, assembler: FrameAssembler) -> Iterator[Event]:
    """The events of a serialised message, as `decode_events` gives them. Raises Internal for what is none."""
    try:
        if len(data) < LARGE_MESSAGE_BYTES:
            yield from decode_events(pb.Events.FromString(data), assembler)
            return
        message = memoryview(data)
        for start, content, stop in _fields(message):
            event = message[content:stop]
            kinds = list(_fields(event))
            if len(kinds) == 1 and event[0] == _FRAME_TAG[0]:
                frame = assembler.add(*_cut(event[kinds[0][1] :]))
                if frame is not None:
                    yield frame
            else:
                yield from decode_events(pb.Events.FromString(bytes(message[start:stop])), assembler)
    except (DecodeError, IndexError) as error:
        raise Internal(f"the stream holds something that is not an Events message: {error}") from None


@dataclass(frozen=True, slots=True)
class Tally:
    """What a serialised message carries, counted without decoding its tensors."""

    tokens: int = 0
    tensor_bytes: int = 0
    """Frames as they travel, their heads included."""
    finished: tuple[Finished, ...] = ()


_NOTHING = Tally()


def tally(data: bytes) -> Tally:
    """Count a message on its way through the gateway. What is no Events message counts as nothing."""
    message = memoryview(data)
    tokens = size = 0
    finished: list[Finished] = []
    try:
        for _, content, stop in _fields(message):
            kind = message[content] if stop > content else 0
            if kind == _TOKEN_TAG[0]:
                tokens += 1
            elif kind == _FRAME_TAG[0]:
                size += stop - content
            elif kind == _FINISHED_TAG[0]:
                finished.append(from_proto(Finished, pb.Event.FromString(bytes(message[content:stop])).finished))
    except (DecodeError, IndexError):
        return _NOTHING
    return Tally(tokens, size, tuple(finished))


def _cut(frame: memoryview) -> tuple[pb.TensorFrame, memoryview]:
    """A serialised frame as its fields but the data, and the data."""
    head, data = list[memoryview](), memoryview(b"")
    for start, content, stop in _fields(frame):
        if frame[start] == _DATA_TAG[0]:
            data = frame[content:stop]
        else:
            head.append(frame[start:stop])
    return pb.TensorFrame.FromString(b"".join(head)), data


def _fields(message: memoryview) -> Iterator[tuple[int, int, int]]:
    """Where each field of a serialised message starts, where its content does, and where it stops."""
    at = 0
    while at < len(message):
        start = at
        tag, at = read_varint(message, at)
        content = at
        kind = tag & 7
        if kind == 0:
            _, at = read_varint(message, at)
        elif kind == 2:
            size, content = read_varint(message, at)
            at = content + size
        else:
            at += {1: 8, 5: 4}.get(kind, len(message) + 1)
        if at > len(message):
            raise DecodeError("a field is cut off, or of a kind that does not exist")
        yield start, content, at
