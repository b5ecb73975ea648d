"""A model that nobody uses frees its memory, and comes back for the next request."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import psutil
import pytest
from serving import Served, broken, drained, eventually, gateway, loaded

from probewire.protos.errors import Unavailable
from probewire.protos.loading import LoadRequest
from probewire.server.gateway.gateway import Gateway
from probewire.server.gateway.workers import State, Worker


def test_an_idle_model_sleeps_and_the_next_request_wakes_it() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(60), gateway("fake", "other", idle_unload_s=0.4) as (it, server):
            worker = it.workers["fake"]

            async def asleep() -> bool:
                return worker.state == "asleep"

            call = server.generate(model="fake", n=60, interval_s=0.05)
            for _ in range(16):  # 0.75 s
                assert await call.read()
            assert worker.state == "ready", "it is in use"
            first = worker.pid or 0
            assert len(await drained(call)) == 46
            await eventually(asleep, "the model sleeps")

            async def gone() -> bool:
                return not psutil.pid_exists(first)

            await eventually(gone, "its process has ended")
            assert {info.id for info in await it.models()} == {"fake", "other"}, "it can still be asked for"
            assert (await it.describe("fake")).id == "fake"
            assert (await it.health()).ready
            both = await asyncio.gather(*(drained(server.generate(model="fake")) for _ in range(2)))
            assert len(both[0]) == len(both[1])
            assert worker.pid != first
            assert worker.restarts == 0, "nobody died"
            await eventually(asleep, "it sleeps again")
            assert [step.stage async for step in it.load(LoadRequest("fake"))][-1] == "ready"
            await it.unload("other")

    asyncio.run(scenario())


def test_a_model_never_sleeps_unless_told() -> None:
    async def scenario() -> None:
        async with asyncio.timeout(60), gateway("fake") as (it, _):
            await asyncio.sleep(0.5)
            assert it.workers["fake"].state == "ready"
            assert isinstance(it, Gateway)

    asyncio.run(scenario())


def over_one(scenario: Callable[[Gateway, Served, Worker], Awaitable[None]]) -> None:
    """Run a scenario against one model, which sleeps only where the scenario says so."""

    async def run() -> None:
        async with asyncio.timeout(60), gateway("fake") as (it, server):
            await scenario(it, server, it.workers["fake"])

    asyncio.run(run())


def test_a_request_in_the_moment_in_which_it_falls_asleep_wakes_it() -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        first = worker.pid
        worker.sleep()
        async with it.ready("fake") as found:  # before the end of the process has even begun
            assert found.state == "ready"
            assert found.pid != first
        assert len(await drained(server.generate())) == 5

    over_one(scenario)


def test_between_finding_it_awake_and_being_served_it_cannot_fall_asleep() -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        async with it.ready("fake"):
            assert worker.idle_s == 0
            worker.sleep()
            assert worker.state == "ready"
        worker.sleep()
        assert worker.state == "asleep"

    over_one(scenario)


def test_whoever_woke_it_is_served_before_it_may_sleep_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        become, slept = worker._become, list[State]()

        def tired(state: State, detail: str = "") -> None:
            become(state, detail)
            if state == "ready":  # who waits for it has not been told yet
                worker.sleep()
                slept.append(worker.state)

        monkeypatch.setattr(worker, "_become", tired)
        worker.sleep()
        assert len(await drained(server.generate())) == 5
        assert slept == ["ready"]

    over_one(scenario)


def test_one_that_dies_in_the_moment_in_which_it_falls_asleep_only_sleeps() -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        assert worker._process is not None
        before_s = worker._watch.age_s
        while worker._watch.age_s >= before_s:  # a probe under way would be the first to know
            before_s = worker._watch.age_s
            await asyncio.sleep(0)
        os.kill(worker.pid or 0, signal.SIGKILL)
        await worker._process.ended.wait()
        worker.sleep()  # its life has not heard of the death yet
        assert worker.state == "asleep"
        assert len(await drained(server.generate())) == 5
        assert worker.restarts == 0

    over_one(scenario)


def test_unloading_one_that_is_woken_while_it_falls_asleep_ends_all_of_it() -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        first = worker.pid or 0
        worker.sleep()
        call = server.generate()
        waiting = asyncio.create_task(broken(call))

        async def woken() -> bool:
            return worker.state == "loading"

        await eventually(woken, "the request wakes it")
        await it.unload("fake")
        assert "unloaded" in ((await waiting).details() or "")
        assert not psutil.pid_exists(first)
        assert not [c for c in psutil.Process().children() if "worker_main" in " ".join(c.cmdline())]

    over_one(scenario)


def test_one_that_cannot_be_woken_says_so_to_requests_and_to_loads_and_sleeps_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(it: Gateway, server: Served, worker: Worker) -> None:
        worker.sleep()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            error = await broken(server.generate())
            assert "sleeps and could not be woken: no process could be started" in (error.details() or "")
            with pytest.raises(
                Unavailable, match=r"could not be woken: .*No such file or directory: '/nowhere/python'"
            ):
                await loaded(it, "fake")
        assert worker.state == "asleep"
        assert len(await drained(server.generate())) == 5

    over_one(scenario)
