"""A large file on its way to a server, in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, BinaryIO

from ..protos.errors import InvalidArgument, ResourceExhausted, Unavailable
from ..protos.saes import SaePart, SaeReceived
from .requests.steps import Steps, ask
from .transport.base import Watch

__all__ = ["PART_BYTES", "send"]

PART_BYTES = 4 << 20
"""Of a request; files beyond are sent in parts."""
LEAST_BYTES = 256 << 10
"""Of a part, for servers that take less."""
MAX_SETBACKS = 3
"""How often a server may have less than it was sent: it has lost it, or made room."""


def send(file: BinaryIO, name: str, operation: Callable[[Any, SaePart], SaeReceived], watch: Watch) -> Steps[str]:
    """Send a file in parts by an operation, from where the server has it on; gives its SHA-256."""
    upload, n_bytes = _digest(file), file.tell()
    there = (yield from ask(operation, SaePart(upload, n_bytes))).n_bytes
    setbacks, size = 0, PART_BYTES
    while there < n_bytes:
        watch(there, n_bytes)
        file.seek(there)
        data = file.read(min(size, n_bytes - there))
        if not data:
            raise InvalidArgument(f"{name} changed while it was sent; send it again")
        try:
            now = (yield from ask(operation, SaePart(upload, n_bytes, there, data))).n_bytes
        except ResourceExhausted:  # of one request, perhaps: a server may allow fewer bytes
            if size <= LEAST_BYTES:
                raise
            size //= 2
            continue
        setbacks += now <= there
        if setbacks > MAX_SETBACKS:
            raise Unavailable(f"the server keeps {now:,} of {name}'s {n_bytes:,} bytes; send it again")
        there = now
    return upload


def _digest(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while piece := file.read(PART_BYTES):
        found.update(piece)
    return found.hexdigest()
