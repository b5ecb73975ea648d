"""The box behind a tool call, entered with the caller's own key: the MCP server has no authority of its own."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context

from ..clients import AsyncClient

__all__ = ["Boxes", "box_of", "key_in"]

MAX_CLIENTS = 64


class Boxes:
    """A client a key, made when the key first comes."""

    def __init__(self, connect: Callable[[str | None], AsyncClient], *, own_key: str | None = None) -> None:
        """`connect` makes a client of a key; `own_key` is the caller's over stdio, where nobody else can call."""
        self._connect, self._own_key = connect, own_key
        self._clients: OrderedDict[str | None, AsyncClient] = OrderedDict()

    async def of(self, key: str | None) -> AsyncClient:
        """The client of a key, good or not: the box says."""
        if key not in self._clients:
            self._clients[key] = self._connect(key)
        self._clients.move_to_end(key)
        while len(self._clients) > MAX_CLIENTS:
            _, oldest = self._clients.popitem(last=False)
            await oldest.close()
        return self._clients[key]

    async def calling(self, request: Any) -> AsyncClient:
        """The client of whoever called; `request` is None over stdio."""
        return await self.of(self._own_key if request is None else key_in(request.headers.get("authorization")))

    async def close(self) -> None:
        """End every client."""
        while self._clients:
            with contextlib.suppress(Exception):
                await self._clients.popitem()[1].close()


def key_in(header: str | None) -> str | None:
    """The key of an Authorization header."""
    kind, _, key = (header or "").partition(" ")
    return key.strip() if kind.lower() == "bearer" and key.strip() else None


async def box_of(ctx: Context[Boxes, Any]) -> AsyncClient:
    """The box of a tool's caller."""
    return await ctx.request_context.lifespan_context.calling(ctx.request_context.request)
