"""What carries a client's calls: the operations of the contract, and a way to watch large answers arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...protos.errors import Unavailable
from ...protos.operations import Operation
from ...protos.tensors import Array
from .closable import Closable

__all__ = ["Transport", "Watch", "Watched", "fix_for", "lost"]

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


class Transport(Protocol):
    """A server or a service at an address. Every method raises ProbewireError and nothing else."""

    address: str
    """As the user wrote it, for messages."""
    is_here: bool
    """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""

    def ask(self, operation: str | Operation, *args: Any) -> Any:
        """The answer of an operation that has one: by its row, or by its name in `Service`."""
        ...

    def listen(self, operation: str | Operation, request: Any) -> Closable[Any]:
        """What an operation streams. Closing it, from any thread, ends the call on the server."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Watched(Protocol):
    """What transports can do and services cannot."""

    def weights(self, name: str, model: str, watch: Watch) -> Array:
        """One weight, named and shaped as in the checkpoint, watched as it arrives."""
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
