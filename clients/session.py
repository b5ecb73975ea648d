"""A live session: hooks on the server that generations bound to it follow, and that can change while they run."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

from ..protos.errors import NotFound, ProbewireError
from ..protos.service import Service
from ..protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ..protos.spec import Hook, Plan
from ..protos.variants.use import VariantUse, checked_uses
from .requests.for_model import require_model
from .requests.hooks import Hooks, planned
from .requests.steps import Caller, Steps, ask, perform
from .requests.variants import Variants
from .transport.base import Transport

__all__ = ["LiveSession", "SessionView", "create", "update"]

MAX_SHOWN_HOOKS = 4


def create(
    client: Caller, hooks: Hooks = (), *, variant: Variants = (), name: str = "", model: str = ""
) -> Steps[Session]:
    """Make a session on the server."""
    plan = yield from _planned(hooks, model)
    uses = checked_uses(variant, "the session")
    return (yield from ask(Service.create_session, CreateSessionRequest(plan, model, name, uses)))


def update(session: Session, hooks: Hooks, *, variant: Variants | None = None, force: bool = False) -> Steps[Session]:
    """Give it other hooks, and other variants where some are named."""
    plan = yield from _planned(hooks, session.model)
    uses = None if variant is None else checked_uses(variant, "the session")
    request = UpdateSessionRequest(session.id, plan, None if force else session.revision, uses)
    return (yield from ask(Service.update_session, request))


def _planned(hooks: Hooks, model: str) -> Steps[Plan]:
    """The hooks as a plan. Raises FailedPrecondition where a steering vector is of another model."""
    plan, vectors_of = planned(hooks)
    if vectors_of:
        info = yield from ask(Service.describe, model)
        require_model(vectors_of, info.id, info.model_hash)
    return plan


class SessionView:
    """One of your sessions, as it was when this side last heard of it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def id(self) -> str:
        """What requests name it by; it cannot be guessed."""
        return self._session.id

    @property
    def name(self) -> str:
        """A label for people."""
        return self._session.name

    @property
    def model(self) -> str:
        """Id of the model that it was made for."""
        return self._session.model

    @property
    def revision(self) -> int:
        """1 at first; one more with each update."""
        return self._session.revision

    @property
    def plan(self) -> Plan:
        """The hooks as a plan."""
        return self._session.plan

    @property
    def hooks(self) -> tuple[Hook, ...]:
        """In the order they apply, before a request's own: those see what the session edits."""
        return self._session.plan.hooks

    @property
    def variants(self) -> tuple[VariantUse, ...]:
        """What generations bound to it run with, before the request's own."""
        return self._session.variants

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"{type(self).__name__}({name}id={self.id!r}, model={self.model!r}, revision={self.revision}: {self._told()})"

    def _told(self) -> str:
        shown = [_told(hook) for hook in self.hooks[:MAX_SHOWN_HOOKS]]
        more = len(self.hooks) - len(shown)
        names = [
            f"variant {use.name}" if use.scale == 1.0 else f"variant {use.name} × {use.scale:g}"
            for use in self.variants
        ]
        return ", ".join([*names, *shown, *([f"{more} more"] if more else [])]) or "no hooks"


class LiveSession(SessionView):
    """One of your sessions, as it was when this side last heard of it. In a `with` it is deleted at the end.

    Give it to a generation (`client.stream(…, session=live)`) and change it meanwhile: what is sampled from the next
    step on runs under the new hooks, and every token says under which revision.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        super().__init__(session)
        self._transport = transport

    def update(self, hooks: Hooks, *, variant: Variants | None = None, force: bool = False) -> Self:
        """Put other hooks in place of these, for generations under way from their next step on.

        `variant`: the same for what they run with; left out, that stays. Keys and values of earlier tokens stay too.

        Raises FailedPrecondition when somebody else has updated it since (`refresh()` shows how), unless `force`; and
        InvalidArgument when a generation under way could not honour the hooks. Nothing has changed then.
        """
        self._session = perform(self._transport, update(self._session, hooks, variant=variant, force=force))
        return self

    def refresh(self) -> Self:
        """What the server has by now. Raises NotFound when it was deleted."""
        self._session = self._transport.ask("session", self.id)
        return self

    def delete(self) -> None:
        """Forget it; generations under way keep the hooks they have. Raises NotFound when it was deleted before."""
        self._transport.ask("delete_session", self.id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with suppress(NotFound if error is None else ProbewireError):  # never in place of the error that ends the block
            self.delete()


def _told(hook: Hook) -> str:
    edit = [] if hook.edit is None else [type(hook.edit).__name__]
    return f"{'+'.join([*edit, *([] if hook.capture is None else ['Capture'])])} at {hook.site}"
