"""Event streams over HTTP (`application/x-protobuf`): every message behind its length, then a trailer that says how it ended.

    stream  = { varint n > 0 · n bytes of an `Events` message }* · 0x00 · varint m · m bytes of JSON
    JSON    = {} after a whole answer, or {"error": {…}} (see error_body.py)

Messages are standard length-delimited protobuf. The zero length stands for no `Events` message, so it is free to mark
the trailer; a stream that ends without one was cut off on its way, and reading it raises Unavailable.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from .. import probewire_pb2 as pb
from ..errors import Internal, ProbewireError, Unavailable
from ..model import Event
from .error_body import error_from_json, error_to_json
from .events import FrameAssembler, decode_events
from .varint import varint

__all__ = ["MEDIA_TYPE", "DelimitedDecoder", "delimit", "iter_delimited", "trailer"]

MEDIA_TYPE = "application/x-protobuf"
MAX_MESSAGE_BYTES = 64 << 20
"""Longer lengths are taken for garbage."""
_MAX_VARINT = 5  # bytes


def delimit(message: bytes) -> bytes:
    """One serialised `Events` message behind its length."""
    return varint(len(message)) + message


def trailer(error: ProbewireError | None = None, request_id: str | None = None) -> bytes:
    """The end of a stream: whole without `error`."""
    body = json.dumps({} if error is None else error_to_json(error, request_id)).encode()
    return b"\x00" + varint(len(body)) + body


def iter_delimited(chunks: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream, whatever pieces it arrives in. Raises what the trailer tells, Unavailable without one."""
    decoder = DelimitedDecoder()
    for chunk in chunks:
        yield from decoder.feed(chunk)
    decoder.close()


class DelimitedDecoder:
    """Reads one stream piece by piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._frames = FrameAssembler()
        self._in_trailer = False
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that this piece completes; take them all before the next piece. Raises what the trailer tells."""
        self._buffer += chunk
        while (found := self._message()) is not None:
            start, stop = found
            message = bytes(self._buffer[start:stop])
            del self._buffer[:stop]
            if self._in_trailer:
                self._end(message)
            elif not message:
                self._in_trailer = True
            else:
                yield from decode_events(_parse(message), self._frames)

    def close(self) -> None:
        """Call at the end of the bytes. Raises Unavailable when the trailer has not come."""
        if not self._done:
            raise Unavailable("the connection ended in the middle of an answer; send the request again")

    def _message(self) -> tuple[int, int] | None:
        """Where the first message starts and stops, without its length; None while it is incomplete."""
        if self._done and self._buffer:
            raise Internal("the stream goes on after its trailer")
        size = 0
        for index, byte in enumerate(self._buffer[:_MAX_VARINT]):
            size |= (byte & 0x7F) << (7 * index)
            if size > MAX_MESSAGE_BYTES:
                break
            if byte < 0x80:
                start = index + 1
                return (start, start + size) if start + size <= len(self._buffer) else None
        if size > MAX_MESSAGE_BYTES or len(self._buffer) >= _MAX_VARINT:
            raise Internal("the stream is not length-delimited protobuf")
        return None

    def _end(self, body: bytes) -> None:
        self._done = True
        try:
            told = json.loads(body)
        except ValueError:
            raise Internal("the trailer of the stream is not JSON") from None
        if told:
            raise error_from_json(told)


def _parse(data: bytes) -> pb.Events:
    try:
        return pb.Events.FromString(data)
    except DecodeError as error:
        raise Internal(f"the stream holds something that is not an Events message: {error}") from None
