"""The gateway's tensor streams: a request is read for its model, and the worker's answer goes on as it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from ...protos import probewire_pb2 as pb
from ...protos.operations import Operation
from ...protos.spec import Plan
from ...protos.wire.parsing import parse
from ..auth.audit import prompt_of
from ..service import Operations
from ..streams import EncodedStreams, closing, off_the_loop
from .request_policy import RequestPolicy
from .sessions import Sessions
from .workers import Worker

__all__ = ["PassThrough", "sites_of"]


class PassThrough:
    """`Streams` of the gateway: the request is read for its model, and the worker's answer goes on untouched."""

    def __init__(
        self,
        operations: Operations,
        policy: RequestPolicy,
        sessions: Sessions,
        ready: Callable[[str], AbstractAsyncContextManager[Worker]],
    ) -> None:
        """`ready`: the worker of a model, awake. `operations`: what answers where no worker is needed."""
        self._own, self._policy, self._sessions, self._ready = EncodedStreams(operations), policy, sessions, ready

    def stream(self, operation: Operation, request: bytes) -> AsyncIterator[bytes]:
        """See Streams. What is asked for its model goes to that model's worker."""
        stays_here = operation.call == "capture"
        return self._own.stream(operation, request) if stays_here else self._passed(operation, request)

    async def _passed(self, operation: Operation, request: bytes) -> AsyncIterator[bytes]:
        def read() -> tuple[Any, dict[str, Any]]:
            asked = parse(operation.message, request)
            return asked, _about(asked, prompts=self._policy.audit.prompts)

        asked, about = await off_the_loop(request, read)
        with self._policy.record(operation.name, **about) as record:
            async with self._ready(asked.model) as worker:
                record.model = worker.config.id
                if record.session:
                    session = await self._sessions.bind(worker, record.caller, record.session)
                    record.session_name = session.name
                    record.sites = (*record.sites, *sites_of(session.plan))
                async with closing(worker.stream(operation.path, request, record.caller)) as messages:
                    async for piece in messages:
                        self._policy.took(record, piece)
                        yield piece
                        record.task = asyncio.current_task()  # an HTTP stream goes on in another once it has begun


def sites_of(plan: Plan) -> tuple[str, ...]:
    """Site patterns of a plan, each once."""
    return tuple(dict.fromkeys(hook.site for hook in plan.hooks))


def _about(request: Any, *, prompts: bool) -> dict[str, Any]:
    """What the policy notes of a serialised request: sites, session, and prompts if they are audited."""
    if isinstance(request, pb.SweepRequest):
        plans = (request.base, *request.plans)
    elif hasattr(request, "plan"):
        plans = (request.plan,)
    else:
        return {}
    return {
        "sites": tuple(dict.fromkeys(hook.site for plan in plans for hook in plan.hooks)),
        "session": getattr(request, "session", ""),
        "prompts": tuple(map(prompt_of, request.inputs)) if prompts else (),
    }
