"""From an address to the transport that reaches it. Each is imported when it is first asked for."""

from __future__ import annotations

import re
import warnings
from urllib.parse import SplitResult, urlsplit

from ...protos.errors import InvalidArgument
from ..requests.async_steps import AsyncTransport
from .base import Transport
from .endpoint import Endpoint
from .tls import Tls

__all__ = ["connect", "connect_async"]

DEFAULT_PORTS = {"grpc": 50051, "grpcs": 50051, "http": 8000, "https": 443}
_ALLOWED = "grpc://host:50051, grpcs://host:port, http://host:8000 or https://host"
_HEADER = re.compile(r"[!-~]*")


def connect(
    url: str, *, api_key: str | None = None, timeout_s: float | None = None, tls: Tls | None = None
) -> Transport:
    """A transport for `url`; nothing is sent yet. Raises InvalidArgument for an address of another form.

    Warns when a key would cross the network unencrypted.
    """
    to = _read(url, api_key, timeout_s, tls)
    if to.is_grpc:
        from .rpc import RpcTransport

        return RpcTransport(to)
    from .rest import RestTransport

    return RestTransport(to)


def connect_async(
    url: str, *, api_key: str | None = None, timeout_s: float | None = None, tls: Tls | None = None
) -> AsyncTransport:
    """As `connect`, for an event loop."""
    to = _read(url, api_key, timeout_s, tls)
    if to.is_grpc:
        from .async_rpc import AsyncRpcTransport

        return AsyncRpcTransport(to)
    from .async_rest import AsyncRestTransport

    return AsyncRestTransport(to)


def _read(url: str, api_key: str | None, timeout_s: float | None, tls: Tls | None) -> Endpoint:
    """The server, and the key if it can be sent there."""
    parts = _split(url)
    host = parts.hostname or ""
    to = Endpoint(
        parts.scheme,
        f"[{host}]" if ":" in host else host,
        parts.port or DEFAULT_PORTS[parts.scheme],
        parts.path.rstrip("/"),
        _checked(api_key),
        timeout_s,
        tls,
    )
    if tls is not None and not to.is_secure:
        raise InvalidArgument(
            f"ca_file, cert_file and key_file are for encrypted connections, and {parts.scheme}:// is none; "
            f"write {parts.scheme}s://{parts.netloc}, or leave them out"
        )
    if api_key and not to.is_secure and not to.is_here:
        warnings.warn(
            f"the api_key crosses the network to {parts.scheme}://{parts.netloc} unencrypted, and whoever sees it can "
            f"use it; write {parts.scheme}s:// where the server has TLS, or go through an ssh tunnel",
            stacklevel=4,  # the line that makes the client
        )
    return to


def _checked(api_key: str | None) -> str | None:
    """The key, unless no header can carry it. It is never part of a message."""
    if api_key is not None and not _HEADER.fullmatch(api_key):
        raise InvalidArgument(
            "the api_key holds spaces, line ends or letters beyond ASCII; a key looks like pw_…, and nothing else"
        )
    return api_key


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        raise InvalidArgument(f"cannot read the address {url!r}; write {_ALLOWED}") from None
    surplus = (
        parts.query or parts.fragment or parts.username or (parts.scheme.startswith("grpc") and parts.path.strip("/"))
    )
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or not port_is_valid or surplus:
        raise InvalidArgument(f"cannot use the address {url!r}; write {_ALLOWED}")
    return parts
