"""What carries a client's calls: the Service of the contract, and a way to watch large answers arrive."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Protocol

from ..protos.service import Service
from ..protos.tensors import Array

__all__ = ["NO_SERVER", "Transport", "Watch", "is_loopback"]

Watch = Callable[[int, int], None]
"""Called with (bytes done, bytes in all; 0 where unknown)."""

NO_SERVER = "start a server with `probewire serve`, or correct the address"
"""The fix when nobody answers."""


class Transport(Service, Protocol):
    """A Service at an address. Every method raises ProbewireError and nothing else."""

    address: str
    """As the user wrote it, for messages."""

    def weights(self, name: str, model: str = "", watch: Watch | None = None) -> Array:
        """One weight, named and shaped as in the checkpoint."""
        ...


def is_loopback(host: str) -> bool:
    """Whether a host is this machine; calls to it never go through a proxy."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
