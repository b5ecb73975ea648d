"""The streams that carry tensors, as bytes on both sides: encoded from `Operations` in a worker, passed on in the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from ..protos import probewire_pb2 as pb
from ..protos.model import StoredCapture, TensorFrame
from ..protos.operations import Operation
from ..protos.tensors import Tensor
from ..protos.wire.events import MAX_CHUNK_BYTES, encode_events
from ..protos.wire.parsing import parse
from .service import Answering

__all__ = ["EncodedStreams", "Streams", "closing", "off_the_loop"]

T = TypeVar("T")

LARGE_REQUEST_BYTES = 16 << 10
"""From here on a request is decoded off the event loop: small messages take longest, and a few bytes each."""


class Streams(Protocol):
    """What carries tensors: a serialised request in, serialised messages of under 1 MiB out. Closing cancels the request."""

    def stream(self, operation: Operation, request: bytes) -> AsyncIterator[bytes]:
        """The messages of an operation that streams events or pieces of weights."""
        ...


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncGenerator[AsyncIterator[T]]:
    """Close a stream on leaving, at once and whatever the reason: that is what cancels the request behind it."""
    try:
        yield stream
    finally:
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()


class EncodedStreams:
    """The streams of some `Operations`, encoded a message at a time so that no step holds the event loop for long."""

    def __init__(self, operations: Answering) -> None:
        self._operations: Any = operations  # its methods are those of the operations

    def stream(self, operation: Operation, request: bytes) -> AsyncIterator[bytes]:
        """See Streams."""
        if operation.counted:
            return self._events(operation, request)
        return self._capture(request) if operation.call == "capture" else self._weights(request)

    async def _events(self, operation: Operation, data: bytes) -> AsyncIterator[bytes]:
        args = await off_the_loop(data, lambda: operation.arguments(parse(operation.message, data)))
        async with closing(getattr(self._operations, operation.call)(*args)) as steps:
            async for events in steps:
                for piece in encode_events(events):
                    yield piece

    async def _weights(self, request: bytes) -> AsyncIterator[bytes]:
        asked = parse(pb.WeightsRequest, request)
        if not asked.name:
            for name, shape in (await self._operations.weight_names(asked.model)).items():
                yield pb.WeightChunk(name=name, shape=shape).SerializeToString()
            return
        tensor = await self._operations.weights(asked.name, asked.model)
        for chunk in _chunks(asked.name, tensor):
            yield chunk

    async def _capture(self, request: bytes) -> AsyncIterator[bytes]:
        asked = parse(pb.CaptureRequest, request)
        stored, tensor = await self._operations.capture(asked.id, asked.model)
        for piece in encode_events([_stored_frame(stored, tensor)]):
            yield piece


async def off_the_loop(request: bytes, work: Callable[[], T]) -> T:
    """Work that goes over all of a request, in a thread where the request is large."""
    return await asyncio.to_thread(work) if len(request) > LARGE_REQUEST_BYTES else work()


def _chunks(name: str, tensor: Tensor) -> Iterator[bytes]:
    for offset in range(0, max(1, len(tensor.data)), MAX_CHUNK_BYTES):
        yield pb.WeightChunk(
            name=name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            offset=offset,
            data=tensor.data[offset : offset + MAX_CHUNK_BYTES],
        ).SerializeToString()


def _stored_frame(stored: StoredCapture, tensor: Tensor) -> TensorFrame:
    """A stored capture as a frame; the tensor keeps the shape it was stored with."""
    return TensorFrame(
        input=stored.input,
        hook=0,
        id=stored.id,
        sites=(stored.site,),
        positions=stored.positions,
        step=0,
        tensor=tensor,
    )
