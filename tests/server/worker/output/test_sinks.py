"""Where events wait for their reader: in order, counted in bytes, and a reader's step back wakes who waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from probewire.protos.errors import Unavailable
from probewire.protos.model import Event, Finished, TensorFrame, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.events import nbytes
from probewire.server.worker.output.sinks import WAKE_ABOVE_BYTES, AsyncSink, QueueSink

A, B, END = Token("x", 0, 1, "a"), Token("x", 1, 2, "b"), Finished("x", "length", Usage(1, 2))


def big(n_bytes: int) -> TensorFrame:
    tensor = Tensor.of(np.zeros((1, 1, n_bytes // 4), dtype=np.float32))
    return TensorFrame("x", 0, "h", ("z.0",), (0,), 0, tensor)


class Woken:
    """A scheduler, of which sinks ask only this."""

    def __init__(self) -> None:
        self.n = 0

    def wake(self) -> None:
        self.n += 1


def queue_sink() -> tuple[QueueSink, Woken]:
    woken: Any = Woken()
    return QueueSink(woken), woken


def test_a_thread_gets_every_event_in_order() -> None:
    sink, _ = queue_sink()
    sink.put([A])
    sink.put([B, END])
    sink.end(None)
    assert list(sink.events()) == [A, B, END]


def test_a_task_gets_the_events_of_each_step_together() -> None:
    async def scenario() -> list[list[Event]]:
        woken: Any = Woken()
        sink = AsyncSink(woken)
        sink.put([A])
        sink.put([B, END])
        sink.end(None)
        return [events async for events in sink.events()]

    assert asyncio.run(scenario()) == [[A], [B, END]]


def test_an_error_is_raised_behind_what_came_before() -> None:
    sink, _ = queue_sink()
    sink.put([A])
    sink.end(Unavailable("gone"))
    stream = sink.events()
    assert next(stream) == A
    with pytest.raises(Unavailable, match="gone"):
        next(stream)


def test_an_error_is_raised_in_a_task_too() -> None:
    seen: list[Event] = []

    async def scenario() -> None:
        woken: Any = Woken()
        sink = AsyncSink(woken)
        sink.put([A])
        sink.end(Unavailable("gone"))
        async for events in sink.events():
            seen.extend(events)

    with pytest.raises(Unavailable, match="gone"):
        asyncio.run(scenario())
    assert seen == [A]


def test_the_backlog_is_what_was_put_and_not_read() -> None:
    sink, _ = queue_sink()
    frame = big(4000)
    sink.put([A, frame])
    sink.put([B])
    assert sink.backlog_bytes == nbytes(A) + nbytes(frame) + nbytes(B)
    assert sink.backlog_bytes > 4000
    sink.end(None)
    stream = sink.events()
    next(stream)
    assert sink.backlog_bytes > 4000, "a step is read once its reader asks for the next"
    next(stream)
    assert next(stream) == B
    assert sink.backlog_bytes == nbytes(B)
    assert list(stream) == []
    assert sink.backlog_bytes == 0


def test_a_tasks_backlog_shrinks_as_it_reads() -> None:
    async def scenario() -> list[int]:
        woken: Any = Woken()
        sink, seen = AsyncSink(woken), list[int]()
        sink.put([A])
        sink.put([B])
        sink.end(None)
        seen.append(sink.backlog_bytes)
        async for _ in sink.events():
            seen.append(sink.backlog_bytes)
        return [*seen, sink.backlog_bytes]

    both = nbytes(A) + nbytes(B)
    assert asyncio.run(scenario()) == [both, both, nbytes(B), 0]


def test_only_a_reader_who_was_far_behind_wakes_the_scheduler() -> None:
    sink, woken = queue_sink()
    for _ in range(3):
        sink.put([big(WAKE_ABOVE_BYTES // 2)])
    sink.end(None)
    stream, seen = sink.events(), list[int]()
    for _ in stream:
        seen.append(woken.n)
    assert seen == [0, 1, 2]
    assert woken.n == 2, "the last one stood alone, at half the bound"


def test_events_come_from_another_thread() -> None:
    async def scenario() -> list[list[Event]]:
        woken: Any = Woken()
        sink = AsyncSink(woken)

        def work() -> None:
            for _ in range(100):
                sink.put([A])
            sink.end(None)

        thread = threading.Thread(target=work)
        thread.start()
        found = [events async for events in sink.events()]
        thread.join()
        return found

    assert asyncio.run(scenario()) == [[A]] * 100


def test_a_loop_that_has_closed_is_nobodys_fault() -> None:
    async def made() -> AsyncSink:
        woken: Any = Woken()
        return AsyncSink(woken)

    sink = asyncio.run(made())
    sink.put([A])
    sink.end(Unavailable("gone"))
    assert sink.backlog_bytes == nbytes(A)
