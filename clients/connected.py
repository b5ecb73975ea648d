"""Where a client's calls go: what the client that waits and the one that awaits are alike in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from ..protos.service import Service
from .requests.async_steps import AsyncTransport
from .transport.base import Transport
from .transport.tls import read_tls

__all__ = ["DEFAULT_URL", "Connected"]

DEFAULT_URL = "grpc://127.0.0.1:50051"

T = TypeVar("T", Transport, AsyncTransport)


class Connected(Generic[T]):
    """A server at an address, or a service in this process."""

    _connect: ClassVar[Callable[..., Any]]
    _hand: ClassVar[Callable[[Service], Any]]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        timeout_s: float | None = 600.0,
        service: Service | None = None,
    ) -> None:
        """`url` is grpc://host:50051 or http://host:8000 (grpcs, https: with TLS). Nothing is sent yet.

        `ca_file` (PEM) is trusted in place of the usual authorities; `cert_file` and `key_file` are your own
        certificate, for servers that ask for one. `timeout_s` bounds each request, a whole stream included (None: no
        bound); loading a model is not bounded.
        """
        if service is not None:
            self._transport: T = type(self)._hand(service)
        else:
            tls = read_tls(ca_file, cert_file, key_file)
            self._transport = self._connect(url, api_key=api_key, timeout_s=timeout_s, tls=tls)

    @classmethod
    def inprocess(cls, service: Service) -> Self:
        """A client of a service in this process. Closing the client closes the service."""
        return cls(service=service)

    @property
    def address(self) -> str:
        """Where the calls go."""
        return self._transport.address

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""
        return self._transport.is_here

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"
