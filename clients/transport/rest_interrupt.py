"""Ends the wait for the rest of an HTTP answer, from any thread: httpx has no word for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Lock
from typing import Any, cast

import httpx

__all__ = ["Interrupt"]


class Interrupt:
    """Of one answer: called, it shuts the connection down on which the answer comes, and no other answer."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = Lock()

    def hold(self, response: httpx.Response) -> None:
        """From here until the answer is closed, and its connection may serve another request, there is something to end."""
        stream: Any = response.extensions.get("network_stream")
        found = None if stream is None else stream.get_extra_info("socket")
        if isinstance(found, socket.socket):
            self._socket = found
            response.stream = _Held(cast("httpx.SyncByteStream", response.stream), self)

    def let_go(self) -> None:
        """There is nothing to end any more."""
        with self._lock:
            self._socket = None

    def __call__(self) -> None:
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # it is closed already
                    # Not TLS's own shutdown, which may not meet a read in another thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Held(httpx.SyncByteStream):
    """An answer's body, which lets go of its connection before that goes back to the others."""

    def __init__(self, stream: httpx.SyncByteStream, interrupt: Interrupt) -> None:
        self._stream, self._interrupt = stream, interrupt

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        """As the body's own."""
        self._interrupt.let_go()
        self._stream.close()
