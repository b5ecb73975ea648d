"""A live session, changed from an event loop."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from typing import Any, Self

from ..protos.errors import NotFound, ProbewireError
from ..protos.service import Service
from ..protos.sessions import Session
from .requests.async_steps import AsyncTransport, aperform
from .requests.hooks import Hooks
from .requests.steps import Steps, ask
from .requests.variants import Variants
from .session import SessionView, update

__all__ = ["AsyncLiveSession", "NewSession"]


class AsyncLiveSession(SessionView):
    """As LiveSession, awaited."""

    def __init__(self, transport: AsyncTransport, session: Session) -> None:
        super().__init__(session)
        self._transport = transport

    async def update(self, hooks: Hooks, *, variant: Variants | None = None, force: bool = False) -> Self:
        """As `LiveSession.update`."""
        self._session = await aperform(self._transport, update(self._session, hooks, variant=variant, force=force))
        return self

    async def refresh(self) -> Self:
        """What the server has by now. Raises NotFound when it was deleted."""
        self._session = await aperform(self._transport, ask(Service.session, self.id))
        return self

    async def delete(self) -> None:
        """Forget it; generations under way keep the hooks they have. Raises NotFound when it was deleted before."""
        await aperform(self._transport, ask(Service.delete_session, self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        with suppress(NotFound if error is None else ProbewireError):  # never in place of the error that ends the block
            await self.delete()


class NewSession:
    """A session that is made when this is awaited (`live = await client.session(…)`) or entered (`async with`)."""

    def __init__(self, transport: AsyncTransport, steps: Steps[Session]) -> None:
        self._transport, self._steps = transport, steps
        self._made: AsyncLiveSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncLiveSession]:
        return self._make().__await__()

    async def _make(self) -> AsyncLiveSession:
        if self._made is None:
            self._made = AsyncLiveSession(self._transport, await aperform(self._transport, self._steps))
        return self._made

    async def __aenter__(self) -> AsyncLiveSession:
        return await self._make()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._made is not None:
            await self._made.__aexit__(kind, error, trace)
