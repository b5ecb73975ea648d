"""The HTTP app in a real server, on the loopback: what needs a connection that streams, or breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from fake_model import FakeOperations

from probewire.server.rest import create_app


@contextmanager
def http_server(operations: FakeOperations, max_body_bytes: int = 1 << 20) -> Generator[str]:
    """The address of a server that runs in a thread."""
    app = create_app(operations, version="test", max_body_bytes=max_body_bytes)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert eventually(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    """Whether it becomes true in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False
