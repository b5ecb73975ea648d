"""The front door of a notebook: prompts and hooks in, tokens and numpy arrays out, over any transport."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Self, TypeVar

from . import calls, server_calls, session as session_calls, variants as variant_calls
from .calls import Captured
from .connected import DEFAULT_URL, Connected
from .requests import repeating
from .requests.asked import Asked
from .requests.hooks import Hooks
from .requests.steps import Caller, Steps, perform
from .requests.variants import Variants
from .session import LiveSession
from .stream import Stream
from .transport.addresses import connect
from .transport.base import Transport
from .transport.inprocess import InProcessTransport

__all__ = ["DEFAULT_URL", "Captured", "Client"]

P = ParamSpec("P")
T = TypeVar("T")


def waits(call: Callable[Concatenate[Caller, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
    """A call as a method that waits for its answer."""

    @functools.wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return perform(self._transport, call(self, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] - it is its method

    return method


def streams(call: Callable[Concatenate[Caller, P], tuple[Asked, bool]]) -> Callable[Concatenate[Client, P], Stream]:
    """As a method that gives what comes, as it comes."""

    @functools.wraps(call)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Stream:
        asked, keep = call(self, *args, **kwargs)
        events = self._transport.listen("generate", asked.generation())  # pyright: ignore[reportPrivateUsage] - as above
        return Stream(events, asked, keep=keep)

    return method


class Client(Connected[Transport]):
    """A probewire server, or a service in this process. Every method raises ProbewireError and nothing else.

    Arrays that it gives are read-only views of what was received: `.copy()` one to change it.
    `hooks` apply in order and before `capture`, so captures see edited values. `model`: empty for the only one loaded.
    """

    _connect, _hand = staticmethod(connect), InProcessTransport

    # ---- inference ----

    generate = waits(calls.generate)
    generate_with_activations = waits(calls.generate_with_activations)
    run = waits(calls.run)
    gradients = waits(calls.gradients)
    sweep = waits(calls.sweep)
    repeat = waits(repeating.repeat)
    token = waits(server_calls.token)

    stream = streams(calls.stream)

    # ---- live sessions ----

    def session(self, hooks: Hooks = (), *, variant: Variants = (), name: str = "", model: str = "") -> LiveSession:
        """Make a live session: hooks that generations bound to it follow while you change them.

        Its hooks may not name inputs, read other inputs, or store. Used in a `with`, it is deleted at the end.
        """
        created = perform(self._transport, session_calls.create(self, hooks, variant=variant, name=name, model=model))
        return LiveSession(self._transport, created)

    def sessions(self) -> list[LiveSession]:
        """Yours, oldest first."""
        return [LiveSession(self._transport, session) for session in self._transport.ask("sessions")]

    def get_session(self, session_id: str) -> LiveSession:
        """One of yours. Raises NotFound."""
        return LiveSession(self._transport, self._transport.ask("session", session_id))

    # ---- models ----

    models = waits(server_calls.models)
    describe = waits(server_calls.describe)
    load = waits(server_calls.load)
    unload = waits(server_calls.unload)
    tokenize = waits(server_calls.tokenize)
    tokenizer_info = waits(server_calls.tokenizer_info)
    weight_names = waits(server_calls.weight_names)
    weights = waits(server_calls.weights)

    # ---- captures kept on the server ----

    captures = waits(server_calls.captures)
    capture = waits(server_calls.capture)
    delete_capture = waits(server_calls.delete_capture)

    # ---- sparse autoencoders on the server ----

    load_sae = waits(server_calls.load_sae)
    saes = waits(server_calls.saes)
    unload_sae = waits(server_calls.unload_sae)
    load_variant = waits(variant_calls.load_variant)
    variants = waits(variant_calls.variants)
    variant = waits(variant_calls.variant)
    fetch_variant = waits(variant_calls.fetch_variant)
    unload_variant = waits(variant_calls.unload_variant)

    # ---- the server and the connection ----

    activity = waits(server_calls.activity)
    health = waits(server_calls.health)
    call = waits(server_calls.call)

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
