"""What carries a client's calls: the Service of the contract, and a way to watch large answers arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...protos.errors import Unavailable
from ...protos.service import Service
from ...protos.tensors import Array

__all__ = ["Transport", "Watch", "fix_for", "lost"]

Watch = Callable[[int, int], None]
"""Called with (bytes done, bytes in all; 0 where unknown)."""

RETRY_S = 2.0
"""When to try again after a connection broke: a server that is restarted needs longer, and then says so."""
NO_SERVER = "start a server with `probewire serve`, or correct the address"
_FIXES = {
    "CERTIFICATE_VERIFY_FAILED": "give the CA that signed the server's certificate as ca_file, and a host name that the "
    "certificate is for",
    "CERTIFICATE_REQUIRED": "the server asks for a client's certificate: give cert_file and key_file",
    "HTTP1.X SERVER": "it speaks HTTP: write http:// if it is the HTTP port, or correct the address",
    "WRONG_VERSION_NUMBER": "it does not speak TLS: write grpc:// or http://",
}
"""What libraries call their reasons, and the fix."""


class Transport(Service, Protocol):
    """A Service at an address. Every method raises ProbewireError and nothing else."""

    address: str
    """As the user wrote it, for messages."""
    is_here: bool
    """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        """One weight, named and shaped as in the checkpoint."""
        ...


def fix_for(reason: str) -> str:
    """What to do about a connection that could not be had."""
    return next((fix for name, fix in _FIXES.items() if name in reason.upper()), NO_SERVER)


def lost(address: str, reason: str) -> Unavailable:
    """A connection that there was, and that broke."""
    return Unavailable(
        f"the connection to {address} broke before the answer was whole ({reason}): the server ended or is being "
        "restarted, or the network failed; send the request again",
        retry_after_s=RETRY_S,
    )
