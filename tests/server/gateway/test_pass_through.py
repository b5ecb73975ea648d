"""The gateway's streams: a request is read for its model, its worker's bytes go on untouched, and the policy is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeOperations

from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Logit, Target
from probewire.protos.model import GenerateRequest, Input, RunRequest, StoredCapture, Token
from probewire.protos.operations import BY_CALL
from probewire.protos.sessions import Session
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import Tensor
from probewire.protos.wire.codec import to_proto
from probewire.protos.wire.events import encode_events
from probewire.server.auth.access import Access
from probewire.server.auth.audit import Audit
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import User
from probewire.server.config import WorkerConfig
from probewire.server.gateway.pass_through import PassThrough, sites_of
from probewire.server.gateway.request_policy import RequestPolicy, RequestRecord
from probewire.server.metrics import Metrics

READ, SCALED = Hook("resid_post.1", capture=Capture()), Hook("mlp_out.*", edit=Scale(0.5))
SESSION = Session("ses-1", "quieter", "m", Plan((SCALED, READ)), 3)
MESSAGES = [*encode_events([Token("input", 0, 5, "a")]), b"\x00not even protobuf", b""]


class FakeWorker:
    """Sends messages and says what it was asked."""

    def __init__(self) -> None:
        self.config = WorkerConfig(model="org/m", id="m")
        self.messages: list[bytes | Exception] = list(MESSAGES)
        self.asked: list[tuple[str, bytes, str]] = []
        self.closed = 0

    async def stream(self, method: str, request: bytes, caller: Caller) -> AsyncIterator[bytes]:
        self.asked.append((method, request, caller.request_id))
        try:
            for message in self.messages:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            self.closed += 1


class Captures(FakeOperations):
    """Holds one stored capture."""

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        if capture_id != "cap-1":
            raise NotFound(f"no capture {capture_id!r}")
        return StoredCapture("cap-1", "z.0", "x", (0,), "float32", (1, 2)), Tensor("float32", (1, 2), bytes(8))


class Box:
    """A pass-through in front of one worker."""

    def __init__(self, audit: Audit) -> None:
        self.policy = RequestPolicy(Access(), Metrics(), audit)
        self.worker = FakeWorker()
        self.found: list[str] = []
        self.bound: list[str] = []
        self.seen: list[RequestRecord] = []
        made: Any = self
        self.streams = PassThrough(Captures(), self.policy, made, made.ready)

    @asynccontextmanager
    async def ready(self, model: str) -> AsyncGenerator[FakeWorker]:
        self.found.append(model)
        if model == "none":
            raise NotFound("no model 'none' is loaded")
        yield self.worker

    async def bind(self, worker: FakeWorker, caller: Caller, session_id: str) -> Session:
        if session_id != SESSION.id:
            raise NotFound(f"no session {session_id!r}")
        self.bound.append(caller.user.name)
        return SESSION

    async def read(self, call: str, request: bytes) -> list[bytes]:
        """All messages of an operation; the record of the policy is looked at with each."""
        found: list[bytes] = []
        async for piece in self.streams.stream(BY_CALL[call], request):
            self.seen += self.policy.records
            found.append(piece)
        return found

    def all(self, call: str, request: object) -> list[bytes]:
        return asyncio.run(self.read(call, request if isinstance(request, bytes) else packed(request)))


def packed(request: object) -> bytes:
    return to_proto(request).SerializeToString()


def generation(**fields: Any) -> GenerateRequest:
    return GenerateRequest((Input("a secret"),), **fields)


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[Audit]:
    audit = Audit(tmp_path / "audit.jsonl", prompts=True)
    yield audit
    audit.close()


@pytest.fixture
def box(audit: Audit) -> Box:
    return Box(audit)


def test_bytes_go_on_as_they_came(box: Box) -> None:
    request = packed(generation(model="org/m"))
    assert box.all("generate", request) == MESSAGES
    assert box.found == ["org/m"]
    [(method, asked, _)] = box.worker.asked
    assert (method, asked) == ("/probewire.v1.Inference/Generate", request)
    assert box.worker.closed == 1
    assert box.policy.records == []


def test_a_request_without_a_model_is_for_the_only_one(box: Box) -> None:
    box.all("run", RunRequest((Input("x"),)))
    assert box.found == [""]
    assert box.seen[0].model == "m", "noted under the name it is served under"


TARGETS = (Target(Logit(5)),)


@pytest.mark.parametrize(
    ("call", "request_", "sites"),
    [
        ("generate", generation(plan=Plan((READ, SCALED, READ))), ("resid_post.1", "mlp_out.*")),
        ("run", RunRequest((Input("x"),), plan=Plan((SCALED,))), ("mlp_out.*",)),
        ("gradients", GradientsRequest((Input("x"),), TARGETS), ()),
        (
            "sweep",
            SweepRequest(
                (Input("x"),), TARGETS, (Plan((SCALED,)), Plan(())), base=Plan((Hook("z.0", edit=Scale(2.0)),))
            ),
            ("z.0", "mlp_out.*"),
        ),
    ],
)
def test_what_a_request_reads_and_edits_is_noted(box: Box, call: str, request_: object, sites: tuple[str, ...]) -> None:
    box.all(call, request_)
    record = box.seen[0]
    assert (record.operation, record.sites) == (BY_CALL[call].name, sites)
    assert record.tokens == 1
    assert len(record.prompts) == 1


def test_prompts_are_noted_only_where_they_are_audited(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "other.jsonl", prompts=False)
    box = Box(audit)
    box.all("generate", generation())
    assert box.seen[0].prompts == ()
    audit.close()


def test_weights_come_from_the_worker_too_and_have_no_sites(box: Box) -> None:
    request = BY_CALL["weights"].asked("w", "m").SerializeToString()
    assert box.all("weights", request) == MESSAGES
    assert (box.found, box.seen[0].sites, box.seen[0].tokens) == (["m"], (), 0)


def test_a_session_is_bound_first_and_its_sites_are_noted(box: Box) -> None:
    box.all("generate", generation(plan=Plan((READ,)), session="ses-1"))
    record = box.seen[0]
    assert box.bound == ["local"]
    assert (record.session, record.session_name) == ("ses-1", "quieter")
    assert set(record.sites) == {"resid_post.1", "mlp_out.*"}


def test_a_session_that_is_not_there_never_reaches_the_worker(box: Box) -> None:
    with pytest.raises(NotFound, match="no session 'ses-2'"):
        box.all("generate", generation(session="ses-2"))
    assert box.worker.asked == []
    assert box.policy.records == []


def test_a_model_that_is_not_there_is_refused(box: Box) -> None:
    with pytest.raises(NotFound, match="no model 'none' is loaded"):
        box.all("generate", generation(model="none"))


def test_bytes_that_are_no_request_are_refused_before_anything_is_found(box: Box) -> None:
    with pytest.raises(InvalidArgument):
        box.all("generate", b"\xff\xff\xff")
    assert box.found == []


def test_who_may_not_never_wakes_a_model(box: Box) -> None:
    async def scenario() -> None:
        CALLER.set(Caller(User("vic", "viewer"), "req-1"))
        await box.read("generate", packed(generation()))

    with pytest.raises(PermissionDenied, match=r"Inference\.Generate needs the role researcher"):
        asyncio.run(scenario())
    assert box.found == []


def test_an_error_of_the_worker_ends_the_stream_behind_what_came(box: Box) -> None:
    box.worker.messages = [MESSAGES[0], Unavailable("the worker died")]
    with pytest.raises(Unavailable, match="the worker died"):
        box.all("generate", generation())
    assert len(box.seen) == 1
    assert (box.worker.closed, box.policy.records) == (1, [])


def test_closing_the_stream_closes_the_workers(box: Box) -> None:
    async def scenario() -> None:
        stream: Any = box.streams.stream(BY_CALL["generate"], packed(generation()))
        await anext(stream)
        assert len(box.policy.records) == 1
        await stream.aclose()

    asyncio.run(scenario())
    assert (box.worker.closed, box.policy.records) == (1, [])


def test_a_record_follows_the_task_that_reads(box: Box) -> None:
    """An HTTP stream goes on in another task once it has begun; it is that which the end of a key cancels."""

    async def scenario() -> None:
        stream = box.streams.stream(BY_CALL["generate"], packed(generation()))
        await asyncio.create_task(_next(stream))
        [record] = box.policy.records
        reader = asyncio.create_task(_rest(stream))
        await reader
        assert record.task is reader

    asyncio.run(scenario())


async def _next(stream: AsyncIterator[bytes]) -> bytes:
    return await anext(stream)


async def _rest(stream: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in stream]


def test_stored_captures_are_the_gateways_own(box: Box) -> None:
    request = BY_CALL["capture"].asked("cap-1", "").SerializeToString()
    assert len(box.all("capture", request)) == 1
    assert (box.found, box.worker.asked) == ([], [])
    with pytest.raises(NotFound, match="no capture 'x'"):
        box.all("capture", BY_CALL["capture"].asked("x", "").SerializeToString())


def test_the_sites_of_a_plan_are_each_named_once() -> None:
    assert sites_of(Plan((READ, SCALED, READ))) == ("resid_post.1", "mlp_out.*")
    assert sites_of(Plan()) == ()
