"""The live sessions that a worker knows, and how an update reaches the generations bound to them.

The gateway tells the worker of a session before the first generation that names it, and of every update. All of this
happens on the model's thread, between steps: a forward runs under one revision from its first row to its last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from ...backends.hooks.base import Backend
from ...backends.hooks.bound import Bindable
from ...backends.hooks.checks import check_hook, expand, from_input
from ...backends.hooks.plan import hook_saes
from ...backends.saes import UserAssets
from ...protos.depth import plan_at_depth
from ...protos.errors import InvalidArgument, NotFound
from ...protos.sessions import Session
from ...protos.spec import Plan
from .input.generate import followed
from .input.prepared import Prepared

__all__ = ["LiveSessions", "check_session_plan"]


class Following(Protocol):
    """A request that may follow a session."""

    prepared: Prepared


class LiveSessions:
    """Sessions by id, each its owner's alone."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[str, Session]] = {}
        self._lock = threading.Lock()

    def find(self, session_id: str) -> Session | None:
        """A session as it is now, whoever's it is."""
        with self._lock:
            return self._sessions.get(session_id, ("", None))[1]

    def get(self, owner: str, session_id: str) -> Session:
        """An owner's session. Raises NotFound."""
        with self._lock:
            found = self._sessions.get(session_id)
        if found is None or found[0] != owner:
            raise NotFound(f"no session {session_id!r}; it was deleted, or never was")
        return found[1]

    def put(self, owner: str, session: Session, jobs: Iterable[Following], backend: Backend) -> None:
        """Take a new session or revision that was checked, for the generations under way too: all of them, or nothing changes.

        Raises InvalidArgument when the plan cannot be honoured by one of them.
        """
        session = replace(session, plan=plan_at_depth(session.plan, backend.info.n_layers))
        old = self.find(session.id)
        if old is not None:
            self.get(owner, session.id)
            if old.revision >= session.revision:
                return
        self._switch([job for job in jobs if job.prepared.session == session.id], session, backend)
        with self._lock:
            self._sessions[session.id] = (owner, session)

    def _switch(self, jobs: list[Following], session: Session, backend: Backend) -> None:
        switches = [(job, sequence, plan) for job in jobs for sequence, plan in job.prepared.revised(session)]
        for _, _, plan in switches:
            if not any(bound.needs for bound in plan.hooks):
                backend.bind(plan)
        for job, sequence, plan in switches:
            if sequence.begun:
                sequence.retired.append(sequence.plan)
            sequence.plan = plan
            job.prepared.plans[session.revision] = followed(job.prepared.own_plan, session)

    def drop(self, owner: str, session_id: str) -> None:
        """Forget one; generations under way keep the plan they have."""
        self.get(owner, session_id)
        with self._lock:
            self._sessions.pop(session_id, None)


def check_session_plan(plan: Plan, model: Bindable, assets: UserAssets) -> None:
    """Raise InvalidArgument for what a session cannot hold, or what model and SAEs cannot do; NotFound for an unknown SAE."""
    for index, hook in enumerate(plan_at_depth(plan, model.info.n_layers).hooks):
        where = f"hook {index} ({hook.site})"
        if hook.inputs is not None or from_input(hook.edit) is not None:
            raise InvalidArgument(f"{where}: a session knows no inputs; give hooks that name inputs with the request")
        if hook.capture is not None and hook.capture.store:
            raise InvalidArgument(f"{where}: a session cannot store; give the hook with the request")
        longest = model.info.context_length or 1  # positions are checked again against each generation
        sites = expand(hook, model.info, where)
        check_hook(hook, sites, model, "generate", where, prompt_length=longest, n_rows=longest)
        hook_saes(hook, sites, assets, where)
