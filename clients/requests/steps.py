"""What a call asks of a server, step by step, as values: one text for the client that waits and the one that awaits.

A call is a generator of steps. Whoever drives it (`perform` here, `aperform` in async_steps.py) does each with a
transport, sends the answer in, and throws in what went wrong.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from ...protos.operations import Operation
from ..transport.base import Transport

__all__ = ["Ask", "Caller", "Listen", "Step", "Steps", "ask", "asking", "listen", "perform"]

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")
R = TypeVar("R")


class Caller(Protocol):
    """What a call may know of its client."""

    @property
    def address(self) -> str:
        """Where the calls go."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """An operation with one answer."""

    operation: str | Operation
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Listen:
    """An operation that answers with a stream; what `hear` raises ends it."""

    operation: str | Operation
    request: Any
    hear: Callable[[Any], None]


Step = Ask | Listen
Steps = Generator[Step, Any, T]
"""A call that gives a T in the end."""


def ask(operation: Callable[Concatenate[Any, P], T], *args: P.args, **named: P.kwargs) -> Steps[T]:
    """The answer of an operation: `info = yield from ask(Service.describe, model)`."""
    if named:
        raise TypeError(f"arguments of an operation go by position, not {', '.join(named)}")
    return cast("T", (yield Ask(operation.__name__, args)))


def asking(operation: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Caller, P], Steps[T]]:
    """The call that asks an operation and does nothing more."""
    signature = inspect.signature(operation)

    @functools.wraps(operation)
    def call(client: Caller, /, *args: P.args, **named: P.kwargs) -> Steps[T]:
        given = signature.bind(client, *args, **named)
        given.apply_defaults()
        return cast("T", (yield Ask(operation.__name__, given.args[1:])))

    return call


def listen(operation: Callable[[Any, R], Iterable[E]], request: R, hear: Callable[[E], None]) -> Steps[None]:
    """Hear each item of an operation that streams."""
    yield Listen(operation.__name__, request, hear)


def perform(transport: Transport, steps: Steps[T]) -> T:
    """Do every step of a call, one after the other, waiting for each."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            step = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as done:
            return done.value
        answer = error = None
        try:
            answer = _done(transport, step)
        except BaseException as raised:  # noqa: BLE001 - the call ends what it began, or answers it; then it is raised
            error = raised


def _done(transport: Transport, step: Step) -> Any:
    if isinstance(step, Ask):
        return transport.ask(step.operation, *step.args)
    items = transport.listen(step.operation, step.request)
    with closing(items):  # at once, whoever still holds the traceback of an error
        for item in items:
            step.hear(item)
    return None
