"""Performs the steps of a call in an event loop: the same calls as `perform` of steps.py, each awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from ...protos.operations import Operation
from .steps import Ask, Step, Steps

__all__ = ["AsyncTransport", "aperform"]

T = TypeVar("T")


class AsyncTransport(Protocol):
    """A Service at an address, asked by the names of its operations. What it raises is ProbewireError and nothing else."""

    address: str
    """As the user wrote it, for messages."""
    is_here: bool
    """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""

    async def ask(self, operation: str | Operation, *args: Any) -> Any:
        """The answer of an operation that has one. Cancelled, it ends the call on the server."""
        ...

    def listen(self, operation: str | Operation, request: Any) -> AsyncGenerator[Any, None]:
        """What an operation streams. Closed or cancelled, it ends the call on the server."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


async def aperform(transport: AsyncTransport, steps: Steps[T]) -> T:
    """Do every step of a call, one after the other, awaiting each."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as done:
            return done.value
        answer = error = None
        try:
            answer = await _done(transport, step)
        except BaseException as raised:  # noqa: BLE001 - as perform: cancellation too ends what the call began
            error = raised


async def _done(transport: AsyncTransport, step: Step) -> Any:
    if isinstance(step, Ask):
        return await transport.ask(step.operation, *step.args)
    async with aclosing(transport.listen(step.operation, step.request)) as items:
        async for item in items:
            step.hear(item)
    return None
