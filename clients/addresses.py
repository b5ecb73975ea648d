"""From an address to the transport that reaches it. Each is imported when it is first asked for."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from ..protos.errors import InvalidArgument
from .transport import Transport

__all__ = ["connect"]

DEFAULT_PORTS = {"grpc": 50051, "grpcs": 50051, "http": 8000, "https": 443}
_ALLOWED = "grpc://host:50051, grpcs://host:port, http://host:8000 or https://host"


def connect(url: str, *, api_key: str | None = None, timeout_s: float | None = None) -> Transport:
    """A transport for `url`; nothing is sent yet. Raises InvalidArgument for an address of another form."""
    parts = _split(url)
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    host = f"[{host}]" if ":" in host else host
    secure = parts.scheme in ("grpcs", "https")
    if parts.scheme.startswith("grpc"):
        from .rpc import RpcTransport

        return RpcTransport(host, port, secure=secure, api_key=api_key, timeout_s=timeout_s)
    from .rest import RestTransport

    return RestTransport(host, port, path=parts.path.rstrip("/"), secure=secure, api_key=api_key, timeout_s=timeout_s)


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
