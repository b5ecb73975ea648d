"""The front door of an event loop: the methods of `Client`, awaited, made from the same calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from ..protos.service import Service
from . import calls, server_calls, session as session_calls, variants as variant_calls
from .async_session import AsyncLiveSession, NewSession
from .async_stream import AsyncStream
from .connected import Connected
from .requests import repeating
from .requests.asked import Asked
from .requests.async_steps import AsyncTransport, aperform
from .requests.hooks import Hooks
from .requests.steps import Caller, Steps, ask
from .requests.variants import Variants
from .transport.addresses import connect_async
from .transport.async_inprocess import AsyncInProcessTransport

__all__ = ["AsyncClient"]

P = ParamSpec("P")
T = TypeVar("T")


def awaits(
    call: Callable[Concatenate[Caller, P], Steps[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A call as a method to be awaited."""

    @functools.wraps(call)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await aperform(self._transport, call(self, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] - it is its method

    return method


def streams(
    call: Callable[Concatenate[Caller, P], tuple[Asked, bool]],
) -> Callable[Concatenate[AsyncClient, P], AsyncStream]:
    """As a method that gives what comes, as it comes."""

    @functools.wraps(call)
    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncStream:
        asked, keep = call(self, *args, **kwargs)
        events = self._transport.listen("generate", asked.generation())  # pyright: ignore[reportPrivateUsage] - as above
        return AsyncStream(events, asked, keep=keep)

    return method


class AsyncClient(Connected[AsyncTransport]):
    """As Client, for asyncio: every method is awaited, `stream` is read with `async for`, and results are the same.

    Cancelling the task that awaits a call ends the call on the server. A client belongs to the event loop that first uses it;
    any number of its tasks may share it.
    """

    _connect, _hand = staticmethod(connect_async), AsyncInProcessTransport

    # ---- inference ----

    generate = awaits(calls.generate)
    generate_with_activations = awaits(calls.generate_with_activations)
    run = awaits(calls.run)
    gradients = awaits(calls.gradients)
    sweep = awaits(calls.sweep)
    repeat = awaits(repeating.repeat)
    token = awaits(server_calls.token)

    stream = streams(calls.stream)

    # ---- live sessions ----

    def session(self, hooks: Hooks = (), *, variant: Variants = (), name: str = "", model: str = "") -> NewSession:
        """Make a live session: `live = await client.session(…)`, or `async with client.session(…) as live`.

        Its hooks may not name inputs, read other inputs, or store. Used in an `async with`, it is deleted at the end.
        """
        return NewSession(self._transport, session_calls.create(self, hooks, variant=variant, name=name, model=model))

    async def sessions(self) -> list[AsyncLiveSession]:
        """Yours, oldest first."""
        found = await aperform(self._transport, ask(Service.sessions))
        return [AsyncLiveSession(self._transport, session) for session in found]

    async def get_session(self, session_id: str) -> AsyncLiveSession:
        """One of yours. Raises NotFound."""
        found = await aperform(self._transport, ask(Service.session, session_id))
        return AsyncLiveSession(self._transport, found)

    # ---- models ----

    models = awaits(server_calls.models)
    describe = awaits(server_calls.describe)
    load = awaits(server_calls.load)
    unload = awaits(server_calls.unload)
    tokenize = awaits(server_calls.tokenize)
    tokenizer_info = awaits(server_calls.tokenizer_info)
    weight_names = awaits(server_calls.weight_names)
    weights = awaits(server_calls.weights)

    # ---- captures kept on the server ----

    captures = awaits(server_calls.captures)
    capture = awaits(server_calls.capture)
    delete_capture = awaits(server_calls.delete_capture)

    # ---- sparse autoencoders on the server ----

    load_sae = awaits(server_calls.load_sae)
    saes = awaits(server_calls.saes)
    unload_sae = awaits(server_calls.unload_sae)
    load_variant = awaits(variant_calls.load_variant)
    variants = awaits(variant_calls.variants)
    variant = awaits(variant_calls.variant)
    fetch_variant = awaits(variant_calls.fetch_variant)
    unload_variant = awaits(variant_calls.unload_variant)

    # ---- the server and the connection ----

    activity = awaits(server_calls.activity)
    health = awaits(server_calls.health)
    call = awaits(server_calls.call)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
