"""Where a page comes from and whom a request is for: the `Origin` and `Host` headers, read strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...protos.errors import InvalidArgument
from ...protos.hosts import address_of, canonical

__all__ = ["Authority", "Origin", "host_name"]

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|(?:[a-z0-9_][a-z0-9_-]*\.)*[a-z0-9_][a-z0-9_-]*\.?)(?::([0-9]{0,5}))?")
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#@\s]+)")
MAX_PORT = 65535
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Authority:
    """`host` or `host:port`."""

    host: str
    """Canonical: an address without brackets, or a name in small letters."""
    port: int | None = None

    @classmethod
    def of(cls, text: str) -> Authority:
        """What a Host header holds. Raises InvalidArgument for what no browser and no HTTP library sends."""
        match = _AUTHORITY.fullmatch(text.lower())
        if match is None or (text.startswith("[") and address_of(match[1]) is None):
            raise InvalidArgument(f"{text[:80]!r} is no host; it looks like box.lab, box.lab:8000, 10.0.0.5 or [::1]")
        port = int(match[2]) if match[2] else None
        if port is not None and not 0 < port <= MAX_PORT:
            raise InvalidArgument(f"{text[:80]!r} has port {port}, and ports are 1 … {MAX_PORT}")
        return cls(canonical(match[1]), port)


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a page."""

    scheme: str
    authority: Authority
    """With a port wherever the scheme has one by default."""

    @classmethod
    def of(cls, text: str) -> Origin:
        """What an Origin header holds. Raises InvalidArgument for anything else, `null` among it: any page can be that."""
        match = _ORIGIN.fullmatch(text.lower())
        if match is None:
            raise InvalidArgument(
                f"{text[:80]!r} is no page's origin; it looks like https://tool.lab or http://tool.lab:3000"
            )
        authority = Authority.of(match[2])
        return cls(match[1], _with_port(authority, match[1]))

    @property
    def text(self) -> str:
        """As a browser writes it."""
        host, port = self.authority.host, self.authority.port
        written = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{written}" + ("" if port in (None, _DEFAULT_PORTS.get(self.scheme)) else f":{port}")

    def is_at(self, host: Authority) -> bool:
        """Whether a request to `host` reaches the server that the page itself came from, if it came in the same scheme."""
        return self.authority == _with_port(host, self.scheme)


def _with_port(authority: Authority, scheme: str) -> Authority:
    return Authority(authority.host, authority.port or _DEFAULT_PORTS.get(scheme))


def host_name(text: str) -> str:
    """A host alone, as the operator names one, canonical. Raises InvalidArgument for a port, a scheme or a path."""
    bare = f"[{text}]" if ":" in text and text[0] != "[" and address_of(text) is not None else text
    authority = Authority.of(bare)
    if authority.port is not None:
        raise InvalidArgument(f"{text!r} has a port, and a host is allowed at any: write {authority.host}")
    return authority.host
