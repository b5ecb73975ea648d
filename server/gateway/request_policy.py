"""What every operation passes on its way in and out: may this caller do it, is there room for it, and what did it bring."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...protos import probewire_pb2 as pb
from ...protos.activity import RequestActivity
from ...protos.errors import Code, PermissionDenied, ProbewireError, ResourceExhausted, Unauthenticated
from ...protos.operations import BY_NAME, OPERATIONS, Role
from ...protos.wire.events import Tally, tally
from ..auth.access import Access
from ..auth.audit import Audit
from ..auth.callers import Caller, current_caller
from ..metrics import Metrics

__all__ = ["RequestPolicy", "RequestRecord"]

log = logging.getLogger(__name__)

ROLES: tuple[Role, ...] = ("viewer", "researcher", "admin")
"""Each may what the one before may."""
PERMITTED: dict[Role, frozenset[str]] = {
    role: frozenset(o.name for o in OPERATIONS if not o.inner and ROLES.index(o.role) <= rank)
    for rank, role in enumerate(ROLES)
}

RECHECK_S = 0.5
"""A revoked key ends its streams with the first message after so long; between messages `sweep` does."""

COUNTED = frozenset(operation.name for operation in OPERATIONS if operation.counted)
"""Operations that take a model's time: they count against a user's limits."""


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop: a test
        return None


@dataclass(eq=False)
class RequestRecord:
    """One operation under way."""

    caller: Caller
    operation: str
    model: str
    sites: tuple[str, ...] = ()
    session: str = ""
    """Its id, for the audit."""
    session_name: str = ""
    """What others may see of it."""
    variants: tuple[str, ...] = ()
    """Names with versions and hashes, in turn, once they are known: for the audit."""
    prompts: tuple[Any, ...] = ()
    """For the audit, where it has them: see `prompt_of`."""
    began_s: float = field(default_factory=time.monotonic)
    tokens: int = 0
    prompt_tokens: int = 0
    captured_bytes: int = 0
    messages: int = 0
    task: asyncio.Task[Any] | None = field(default_factory=_current_task)
    """What serves it now (HTTP streams change it once they have begun): cancelled when the key ends."""
    revoked: bool = False
    """It was cancelled for that."""
    checked_s: float = field(default_factory=time.monotonic)
    """When the key was last looked at."""

    def activity(self) -> RequestActivity:
        """As `probewire top` shows it."""
        return RequestActivity(
            id=self.caller.request_id,
            user=self.caller.user.name,
            model=self.model,
            operation=self.operation,
            state="running" if self.messages > 1 else "waiting",
            sites=self.sites,
            session=self.session_name or ("yes" if self.session else ""),
            age_s=time.monotonic() - self.began_s,
            tokens=self.tokens,
            captured_bytes=self.captured_bytes,
        )


class RequestPolicy:
    """Of one gateway. Used by the event loop alone."""

    def __init__(self, access: Access, metrics: Metrics, audit: Audit) -> None:
        self.access, self.metrics, self.audit = access, metrics, audit
        self._records: dict[int, RequestRecord] = {}
        self._pace: dict[str, _Bucket] = {}

    @property
    def records(self) -> list[RequestRecord]:
        """Operations under way, oldest first."""
        return list(self._records.values())

    def check(self, operation: str) -> Caller:
        """The caller, if their role allows the operation. Raises PermissionDenied."""
        caller, needed = current_caller(), BY_NAME[operation].role
        if ROLES.index(caller.user.role) < ROLES.index(needed):
            raise PermissionDenied(
                f"{operation} needs the role {needed}, and {caller.user.name} is a {caller.user.role}; ask who runs the box"
            )
        return caller

    @contextmanager
    def record(
        self,
        operation: str,
        model: str = "",
        *,
        sites: Sequence[str] = (),
        session: str = "",
        prompts: Sequence[Any] = (),
    ) -> Generator[RequestRecord]:
        """An operation from its beginning to its end. Raises PermissionDenied and ResourceExhausted."""
        caller = current_caller()
        record = RequestRecord(caller, operation, model, tuple(sites), session, prompts=tuple(prompts))
        self.metrics.began(caller.user.name)
        code = "OK"
        try:
            self.check(operation)
            self._check_limits(record)
            self._records[id(record)] = record
            yield record
        except ProbewireError as error:
            code = error.code.name
            raise
        except BaseException as error:
            if record.revoked and not isinstance(error, Exception):  # `sweep` did it, and nobody else would say why
                code = Code.UNAUTHENTICATED.name
                raise _ended_key() from None
            code = Code.INTERNAL.name if isinstance(error, Exception) else Code.CANCELLED.name
            raise
        finally:
            self._records.pop(id(record), None)
            self._left(record, code)

    def sweep(self) -> None:
        """End what runs for callers whose keys have ended and who take no more messages, and would hold their slots."""
        for record in self.records:
            if record.task is None or record.revoked or self.access.still_in(record.caller):
                continue
            record.revoked = record.task.cancel()
            if record.revoked:  # else between the two tasks of an HTTP stream: `took` or the next sweep ends it
                log.info("request %s of %s is ended with its key", record.caller.request_id, record.caller.user.name)

    def took(self, record: RequestRecord, message: bytes) -> None:
        """A message of the record's stream is about to go out. Raises Unauthenticated when its key has ended."""
        found, user = tally(message) if record.operation in COUNTED else Tally(), record.caller.user
        if found.tokens and not record.tokens:
            self.metrics.first_token(record.model, time.monotonic() - record.began_s)
        record.task = _current_task()
        if record.operation in COUNTED and not record.messages:
            record.variants = _variants_of(message)
        record.messages += 1
        record.tokens += found.tokens
        record.captured_bytes += found.tensor_bytes
        self.metrics.sent(record.model, user.name, found.tokens, found.tensor_bytes)
        spent = found.tokens
        for finished in found.finished:
            spent += finished.usage.prompt_tokens
            record.prompt_tokens += finished.usage.prompt_tokens
            self.metrics.finished(record.model, user.name, finished)
        if spent and user.limits.tokens_per_minute:
            self._bucket(record.caller).take(spent)
        now = time.monotonic()
        if now - record.checked_s < RECHECK_S:
            return
        record.checked_s = now
        if not self.access.still_in(record.caller):
            raise _ended_key()

    def _check_limits(self, record: RequestRecord) -> None:
        if record.operation not in COUNTED:
            return
        user = record.caller.user
        running = Counter(v.caller.user.name for v in self._records.values() if v.operation in COUNTED)[user.name]
        if user.limits.requests and running >= user.limits.requests:
            raise ResourceExhausted(
                f"{user.name} has {running} requests under way, the most allowed; wait for one to end",
                retry_after_s=2.0,
            )
        if user.limits.tokens_per_minute:
            self._bucket(record.caller).check(user.name)

    def _bucket(self, caller: Caller) -> _Bucket:
        limit, name = caller.user.limits.tokens_per_minute, caller.user.name
        found = self._pace.get(name)
        if found is None or found.per_minute != limit:
            found = self._pace[name] = _Bucket(limit)
        return found

    def _left(self, record: RequestRecord, code: str) -> None:
        seconds = time.monotonic() - record.began_s
        user = record.caller.user
        self.metrics.ended(user.name, record.operation, record.model, code, seconds)
        self.audit.write(
            request=record.caller.request_id,
            user=user.name,
            peer=record.caller.peer,
            operation=record.operation,
            model=record.model,
            sites=record.sites,
            session=record.session,
            variants=record.variants,
            prompts=record.prompts if self.audit.prompts else (),
            code=code,
            prompt_tokens=record.prompt_tokens,
            tokens=record.tokens,
            captured_bytes=record.captured_bytes,
            seconds=round(seconds, 4),
        )


def _variants_of(message: bytes) -> tuple[str, ...]:
    """What a stream's beginning says of the variants that run: each name with its version, then its hash."""
    started = (event.started for event in pb.Events.FromString(message).events if event.HasField("started"))
    told = [(f"{one.name}@{one.version}", one.hash) for event in started for one in event.variants]
    return tuple(text for pair in dict.fromkeys(told) for text in pair)


def _ended_key() -> Unauthenticated:
    return Unauthenticated("your key was revoked or replaced while the request ran")


class _Bucket:
    """Tokens a minute, paid for once they were had: a debt must be worked off before the next request."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = time.monotonic()

    def take(self, tokens: int) -> None:
        """Tokens were had."""
        self._fill()
        self._level -= tokens

    def check(self, user: str) -> None:
        """Raise ResourceExhausted while there is a debt."""
        self._fill()
        if self._level < 1:
            wait_s = (1 - self._level) * 60 / self.per_minute
            raise ResourceExhausted(
                f"{user} has used up {self.per_minute:,} tokens a minute; the next request may come in {wait_s:.0f} s",
                retry_after_s=wait_s,
            )

    def _fill(self) -> None:
        now = time.monotonic()
        self._level = min(self.per_minute, self._level + (now - self._at_s) * self.per_minute / 60)
        self._at_s = now
