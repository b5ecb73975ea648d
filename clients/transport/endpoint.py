"""A server as a client calls it: where it is, who asks, and how long an answer may take."""

from __future__ import annotations

from dataclasses import dataclass

from ...protos.hosts import is_loopback
from .tls import Tls

__all__ = ["Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What a URL says, and what goes with every call."""

    scheme: str
    """grpc, grpcs, http or https."""
    host: str
    """As URLs write it: an IPv6 one in brackets."""
    port: int
    path: str = ""
    api_key: str | None = None
    timeout_s: float | None = None
    """Bounds every call, whole streams included, but not loading a model. None: no bound."""
    tls: Tls | None = None

    @property
    def address(self) -> str:
        """As users write it."""
        return f"{self.scheme}://{self.host}:{self.port}{self.path}"

    @property
    def is_secure(self) -> bool:
        """Whether TLS encrypts it."""
        return self.scheme in ("grpcs", "https")

    @property
    def is_grpc(self) -> bool:
        """Whether it is gRPC, not HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""
        return is_loopback(self.host)

    @property
    def authorization(self) -> dict[str, str]:
        """The header of every call; none without a key."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
