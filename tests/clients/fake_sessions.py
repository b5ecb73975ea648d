"""Live sessions of the fake service, and what a generation bound to one follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from probewire.protos.errors import FailedPrecondition, NotFound
from probewire.protos.model import GenerateRequest, ResolvedHook
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.sites import SitePattern
from probewire.protos.spec import Plan

N_LAYERS = 3


def hook_id(plan: Plan, index: int) -> str:
    return plan.hooks[index].id or f"hook{index}"


def resolved(plan: Plan) -> tuple[ResolvedHook, ...]:
    """Every hook of a plan with its sites. Raises InvalidArgument for layers that the model has not."""
    return tuple(
        ResolvedHook(i, hook_id(plan, i), tuple(str(s) for s in SitePattern.parse(hook.site).expand(N_LAYERS)))
        for i, hook in enumerate(plan.hooks)
    )


class FakeSessions:
    """Sessions by id."""

    def __init__(self) -> None:
        self.kept: dict[str, Session] = {}
        self.made = 0
        self.plans: list[Plan] = []
        """Every plan that one was made with or given."""

    def create(self, request: CreateSessionRequest) -> Session:
        resolved(request.plan)
        self.made += 1
        session = Session(f"ses-{self.made}", request.name, "fake", request.plan, 1, 10.0, 10.0)
        self.kept[session.id] = session
        self.plans.append(session.plan)
        return session

    def update(self, request: UpdateSessionRequest) -> Session:
        old = self.get(request.id)
        if request.revision not in (None, old.revision):
            raise FailedPrecondition(f"session {old.id!r} is at revision {old.revision}, not {request.revision}")
        resolved(request.plan)
        session = replace(old, plan=request.plan, revision=old.revision + 1, updated_s=old.updated_s + 1)
        self.kept[old.id] = session
        self.plans.append(session.plan)
        return session

    def get(self, session_id: str) -> Session:
        if session_id not in self.kept:
            raise NotFound(f"no session {session_id!r}; it was deleted, or never was")
        return self.kept[session_id]

    def delete(self, session_id: str) -> None:
        self.get(session_id)
        del self.kept[session_id]


@dataclass
class Followed:
    """One generation's plans: its own hooks, then its session's as they go."""

    request: GenerateRequest
    sessions: FakeSessions
    plan: Plan = field(init=False)
    revision: int = 0
    since: list[int] = field(default_factory=list)
    """Of each hook of `plan`: the revision from which it has been what it is; 0 for the request's own."""

    def __post_init__(self) -> None:
        self.plan = self.request.plan
        self.since = [0] * len(self.plan.hooks)
        if self.request.session:
            self.sessions.get(self.request.session)
            self.step()

    def step(self) -> bool:
        """Take over what the session is now; whether it is something else. A deleted session stays as it was."""
        session = self.sessions.kept.get(self.request.session)
        if session is None or session.revision == self.revision:
            return False
        own, before, since = self.request.plan.hooks, self.plan.hooks, self.since
        self.plan, self.revision = Plan((*own, *session.plan.hooks)), session.revision
        self.since = [
            0 if i < len(own) else since[i] if i < len(before) and before[i] == hook else self.revision
            for i, hook in enumerate(self.plan.hooks)
        ]
        return True
