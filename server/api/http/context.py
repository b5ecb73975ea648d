"""What every route of the HTTP APIs is handed, and how a route describes itself in OpenAPI."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ...auth.access import Access
from ...metrics import Metrics
from ...service import Operations, answer
from .schema import Schema, Schemas

__all__ = ["Api", "body_doc", "content", "ok"]


@dataclass(frozen=True, slots=True, eq=False)
class Api:
    """The operations and the limits of one app."""

    operations: Operations
    version: str
    max_body_bytes: int
    access: Access = field(default_factory=Access)
    metrics: Metrics = field(default_factory=Metrics)
    measure: Callable[[], Awaitable[bytes]] | None = None
    """The metrics with what the workers say now; None: without that."""
    schemas: Schemas = field(default_factory=Schemas)
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix time, in seconds."""

    async def ask(self, call: str, *args: Any) -> Any:
        """What an operation with one answer comes to; `call`: as protos/operations.py names it."""
        return await answer(self.operations, call, *args)


def content(*pairs: tuple[str, Schema]) -> dict[str, Any]:
    """OpenAPI's media type objects."""
    return {media: {"schema": schema} for media, schema in pairs}


def body_doc(schema: Schema, *, required: bool = True) -> dict[str, Any]:
    """The JSON body that a route reads by itself."""
    return {"requestBody": {"required": required, "content": content(("application/json", schema))}}


def ok(description: str, *pairs: tuple[str, Schema]) -> dict[int | str, dict[str, Any]]:
    """The good answer, and the shape of all others."""
    error = {"description": "Any error", "content": content(("application/json", _ERROR))}
    return {200: {"description": description, "content": content(*pairs)}, "default": error}


_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": "string", "nullable": True},
                "code": {"type": "string", "description": "The name of a code, such as INVALID_ARGUMENT."},
                "retry_after_s": {"type": "number"},
                "request_id": {"type": "string"},
            },
        }
    },
}
