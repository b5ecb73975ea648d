"""The HTTP app in a real server of this process: what needs a connection that streams, breaks, or is hardly HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from typing import Any

import uvicorn
from fake_model import FakeOperations
from fastapi import FastAPI

from probewire.cli.serve.http import ImpatientProtocol
from probewire.server.api.http.app import create_app

__all__ = ["Address", "Answer", "eventually", "http_server", "listening", "said"]

Address = tuple[str, int]


@contextmanager
def http_server(operations: FakeOperations, max_body_bytes: int = 1 << 20) -> Generator[str]:
    """The address of a server that runs in a thread."""
    app = create_app(operations, version="test", max_body_bytes=max_body_bytes)
    with listening(app) as (host, port):
        yield f"http://{host}:{port}"


@contextmanager
def listening(app: FastAPI, host: str = "127.0.0.1", **options: Any) -> Generator[Address]:
    """Host and port of an app behind the protocol class that `probewire serve` uses."""
    settings: dict[str, Any] = {"lifespan": "off", "ws": "none", "proxy_headers": False, "timeout_graceful_shutdown": 1}
    settings["log_config"] = None  # uvicorn would change its loggers for whatever else this process tests
    config = uvicorn.Config(app, host=host, port=0, http=ImpatientProtocol, **settings | options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert eventually(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a connection."""

    status: int
    headers: HTTPMessage
    body: bytes


def said(address: Address, data: bytes, n: int = 1) -> list[Answer]:
    """The first `n` answers to bytes that are sent as they stand; fewer where the server hangs up before."""
    answers: list[Answer] = []
    with (
        socket.create_connection(address, timeout=10) as connection,
        connection.makefile("rb") as stream,
        contextlib.suppress(ConnectionError),
    ):
        connection.sendall(data)
        while len(answers) < n and stream.peek(1):
            response = HTTPResponse(_Read(stream))
            response.begin()
            answers.append(Answer(response.status, response.headers, response.read()))
    return answers


class _Read:
    """What HTTPResponse wants of a socket: one stream, which outlives it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> _Read:
        return self

    def close(self) -> None:
        """The next answer comes from the same stream."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False
