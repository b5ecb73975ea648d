"""The HTTP server: uvicorn around our app, with bounds on connections and on how long a request's head may take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...protos.errors import Code, ProbewireError
from ...protos.hosts import canonical
from ...server.api.http.app import create_app
from ...server.auth.proxies import Proxies
from ...server.config import GatewayConfig
from ...server.gateway.gateway import Gateway
from ..version import VERSION
from .framing import StrictConnection
from .tls import Tls

__all__ = ["HttpServer"]

HEAD_S = 20.0
"""How long a connection may take to bring the head of a request."""
KEEP_ALIVE_S = 75
"""How long an idle connection is kept: well above what clients keep theirs (httpx 5 s, the openai package too), or a
request would now and then meet a connection that is just being closed."""
MAX_CONNECTIONS = 4096
"""Open at once; more are answered 503."""
OUR_FAULTS = frozenset({Code.INTERNAL, Code.UNAVAILABLE})


class HttpServer(uvicorn.Server):
    """uvicorn, without its signal handlers: one stop signal ends both APIs."""

    def __init__(self, gateway: Gateway, config: GatewayConfig, tls: Tls | None) -> None:
        app = create_app(
            gateway,
            version=VERSION,
            max_body_bytes=config.limits.max_request_bytes,
            allowed_hosts=(canonical(config.host), *(tls.names() if tls else ()), *config.allowed_hosts),
            allowed_origins=config.allowed_origins,
            proxies=Proxies.of(config.trusted_proxies),
            access=gateway.policy.access,
            metrics=gateway.metrics,
            measure=gateway.measure,
        )
        logging.getLogger("uvicorn.error").addFilter(_callers_quietly)
        super().__init__(
            uvicorn.Config(
                app,
                http=ImpatientProtocol,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                proxy_headers=False,  # uvicorn would believe any local process; see server/auth/proxies.py
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(config.drain_s)),
                **(tls.options() if tls else {}),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _callers_quietly(record: logging.LogRecord) -> bool:
    """An answer that is broken off for its caller's own reason, a deadline say, is one line; uvicorn makes it a fault."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ProbewireError) and error.code not in OUR_FAULTS:
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        record.msg, record.args = "an answer was broken off: %s", (error.message,)
        record.exc_info = record.exc_text = None
    return True


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1, strictly, that hangs up on whoever sends a head a byte at a time: uvicorn waits for ever."""

    head_s = HEAD_S
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = StrictConnection(h11.SERVER)

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """A head is complete once there is a request; between two, uvicorn's own keep-alive bound holds."""
        super().data_received(data)
        if self._in_request():
            self._stop_waiting()
        elif self._deadline is None:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Garbage behind an answer that has begun can only be hung up on: h11 would raise, and the log fill."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _in_request(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn's types say
        return cycle is not None and not cycle.response_complete

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_s, self._hang_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        self._deadline = None
        if not self._in_request() and not self.transport.is_closing():
            self.transport.close()
