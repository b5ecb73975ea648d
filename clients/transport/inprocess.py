"""A service in the same process, behind the same edge as the others: foreign exceptions become ours."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, cast

from ...protos.errors import Internal, InvalidArgument, ProbewireError
from ...protos.operations import Operation
from ...protos.service import Service
from .closable import Closable

__all__ = ["InProcessTransport"]

T = TypeVar("T")


class InProcessTransport:
    """Calls a handed service directly; nothing is encoded. Closing it closes the service."""

    address = "in process"
    is_here = True

    def __init__(self, service: Service) -> None:
        if not isinstance(service, Service):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks hand anything
            missing = [name for name in vars(Service) if not name.startswith("_") and not hasattr(service, name)]
            raise InvalidArgument(
                f"{type(service).__name__} is not a protos.service.Service; it lacks {', '.join(missing)}"
            )
        self._service = service

    def ask(self, operation: str | Operation, *args: Any) -> Any:
        """See Transport."""
        *given, watch = args if operation == "weights" else (*args, None)
        with _translated():
            answer = self._method(operation)(*given)
        if watch is not None:
            watch(answer.nbytes, answer.nbytes)
        return answer

    def listen(self, operation: str | Operation, request: Any) -> Closable[Any]:
        """See Transport."""
        return _stream(lambda: self._method(operation)(request))

    def _method(self, operation: str | Operation) -> Callable[..., Any]:
        """What answers an operation: the service's method of its name, or `other`."""
        name, service = operation if isinstance(operation, str) else operation.call, cast("Any", self._service)
        return getattr(service, name, None) or partial(service.other, operation)

    def close(self) -> None:
        with _translated():
            self._service.close()


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except ProbewireError:
        raise
    except Exception as error:
        raise Internal(f"the service in this process failed: {type(error).__name__}: {error}") from error


def _stream(start: Callable[[], Iterator[T]]) -> Closable[T]:
    with _translated():
        items = start()
    return Closable(_read(items), lambda: _close(items))


def _read(items: Iterator[T]) -> Iterator[T]:
    with _translated():
        try:
            yield from items
        finally:
            _close(items)


def _close(items: object) -> None:
    close = getattr(items, "close", None)
    if close is not None:
        try:
            close()
        except ValueError as error:
            if "already executing" not in str(error):  # a plain generator in another thread ends with its next item
                raise
