"""A model that nobody uses frees its memory, and comes back for the next request."""

from __future__ import annotations

import asyncio

import psutil
from serving import drained, eventually, gateway

from probewire.protos.loading import LoadRequest
from probewire.server.gateway import Gateway


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
