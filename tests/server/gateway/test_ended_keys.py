"""A key that is revoked while its streams run: readers who take nothing more give their slots back as well."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from serving import GENERATE, Served, broken, eventually, gateway, request_bytes, served

from probewire.cli.serve.http import HttpServer
from probewire.cli.serve.serving import _listen
from probewire.protos.errors import Unauthenticated
from probewire.server.api.grpc.service import admit_at_the_door
from probewire.server.auth.access import Access
from probewire.server.auth.audit import Audit
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import Users
from probewire.server.config import GatewayConfig
from probewire.server.gateway import gateway as gateway_module, request_policy as policy_module
from probewire.server.gateway.gateway import Gateway
from probewire.server.gateway.request_policy import RequestPolicy
from probewire.server.metrics import Metrics
from probewire.server.state.database import State

LONG = {"n": 1000, "bytes": 500_000}
"""500 MB: far more than lies in the buffers on the way to a reader who has stopped."""


@pytest.fixture(autouse=True)
def swept_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the sweep ends a stream here: no message that goes out looks at the key."""
    monkeypatch.setattr(policy_module, "RECHECK_S", 3600.0)
    monkeypatch.setattr(gateway_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(gateway_module, "UPKEEP_S", 0.05)


async def stalled(it: Gateway, server: Served) -> None:
    """Wait until ada's generation makes no more steps."""
    last = 0

    async def still() -> bool:
        nonlocal last
        before, last = last, (await server.counts())[2]
        await asyncio.sleep(0.2)
        return 0 < last == before

    await eventually(still, "the stream stands still")
    assert [record.caller.user.name for record in it.policy.records] == ["ada"]
    assert (await server.counts())[:2] == (1, 0)


async def freed(it: Gateway, server: Served) -> None:
    """Wait until nothing of the generation is left."""

    async def gone() -> bool:
        return (await server.counts())[:2] == (0, 1) and not it.policy.records

    await eventually(gone, "the request was ended in the worker and at the policy")


def audited(audit: Path) -> list[tuple[str, str]]:
    """What ada did, and what came of it."""
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    return [(line["operation"], line["code"]) for line in lines if line["user"] == "ada"]


def test_a_stalled_grpc_reader_frees_its_slot(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"

    async def scenario() -> None:
        async with gateway("fake", audit=str(audit)) as (it, server):
            authorization = ("authorization", f"Bearer {it.users.add('ada', 'researcher')}")
            async with served(it, streams=it.streams, admit=admit_at_the_door(it.policy.access)) as door:
                stream = door.channel.unary_stream(GENERATE)
                call = stream(request_bytes(**LONG), metadata=(authorization,))
                await call.read()
                await stalled(it, server)
                it.users.revoke("ada")
                await freed(it, server)
                error = await broken(call)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                assert "revoked" in (error.details() or "")

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert audited(audit) == [("Inference.Generate", "UNAUTHENTICATED")]


def test_a_stream_that_brings_nothing_is_ended_however_seldom_there_is_upkeep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_module, "UPKEEP_S", 3600.0)

    async def scenario() -> None:
        async with gateway("fake") as (it, server):
            authorization = ("authorization", f"Bearer {it.users.add('ada', 'researcher')}")
            async with served(it, streams=it.streams, admit=admit_at_the_door(it.policy.access)) as door:
                call = door.channel.unary_stream(GENERATE)(request_bytes(interval_s=3600), metadata=(authorization,))
                await call.read()
                it.users.rotate("ada")
                error = await broken(call)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                await freed(it, server)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@asynccontextmanager
async def http(it: Gateway) -> AsyncGenerator[tuple[int, HttpServer]]:
    """The port of the REST API, in this loop."""
    server = HttpServer(it, GatewayConfig(drain_s=1), None)
    listener = _listen("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        await serving


def test_a_stalled_reader_of_server_sent_events_frees_its_slot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = tmp_path / "audit.jsonl"

    async def scenario() -> None:
        async with gateway("fake", audit=str(audit)) as (it, server), http(it) as (port, api):
            key = it.users.add("ada", "researcher")
            script = json.dumps({"bytes": LONG["bytes"]})
            body = json.dumps({"text": script, "stream": True, "sampling": {"max_new_tokens": LONG["n"]}})
            head = f"POST /v1/generate HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{head}\r\n\r\n{body}".encode())
            await reader.readuntil(b"event: token")

            async def full() -> bool:
                connections: set[Any] = api.server_state.connections
                return any(connection.flow.write_paused for connection in connections)

            await eventually(full, "the reader takes nothing more")
            await stalled(it, server)
            it.users.revoke("ada")
            await freed(it, server)
            rest = await reader.read()
            assert b"event: finished" not in rest
            assert not rest.endswith(b"\r\n0\r\n\r\n"), "an answer that was broken off has no end"
            writer.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "broken off: your key was revoked" in caplog.text
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert audited(audit) == [("Inference.Generate", "UNAUTHENTICATED")]


async def waits_at(policy: RequestPolicy, begun: asyncio.Event, caller: Caller) -> None:
    """An operation of a caller that never ends by itself."""
    CALLER.set(caller)
    with policy.record("Inference.Run"):
        begun.set()
        await asyncio.Event().wait()


def test_upkeep_that_fails_goes_on_and_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with gateway() as (it, _):
            failed = asyncio.Event()

            def fail() -> None:
                failed.set()
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(it.store, "purge", fail)
            await failed.wait()
            failed.clear()
            it.users.add("ada", "researcher")
            begun = asyncio.Event()
            waiting = asyncio.create_task(waits_at(it.policy, begun, Caller(it.users.get("ada"), "req-ada")))
            await begun.wait()
            it.users.revoke("ada")
            with pytest.raises(Unauthenticated, match="revoked"):
                await waiting
            await failed.wait()

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(scenario(), 60))
    assert "upkeep failed" in caplog.text
    assert "No space left" in caplog.text


def test_a_stream_that_is_between_two_tasks_is_swept_in_its_next_one(tmp_path: Path) -> None:
    """HTTP takes a stream's first message in a task of its own, to answer a refusal with a status."""

    async def scenario() -> None:
        state = State(tmp_path)
        users = Users(state)
        policy = RequestPolicy(Access(users), Metrics(), Audit(None))
        users.add("ada", "researcher")
        CALLER.set(Caller(users.get("ada"), "req-ada"))
        begun = asyncio.Event()

        async def messages() -> AsyncGenerator[None]:
            with policy.record("Inference.Generate") as record:
                while True:
                    policy.took(record, b"")
                    yield

        stream = messages()

        async def first() -> None:
            await anext(stream)

        async def rest() -> None:
            await anext(stream)
            begun.set()
            await asyncio.Event().wait()  # a reader who has stopped

        await asyncio.create_task(first())
        users.revoke("ada")
        policy.sweep()
        sending = asyncio.create_task(rest())
        await begun.wait()
        policy.sweep()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(Unauthenticated):
            await stream.aclose()
        assert policy.records == []
        state.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))
