"""Workers that die, hang, or are told to end, and who notices."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest
from serving import DEADLINE_S, QUICK, Served, broken, drained, eventually, gateway, loaded

from probewire.protos.errors import Internal, Unavailable
from probewire.protos.loading import LoadRequest
from probewire.server.config import Supervision
from probewire.server.gateway.gateway import Gateway

Scenario = Callable[[Gateway, Served], Awaitable[None]]


def over_gateway(scenario: Scenario, *models: str, supervision: Supervision = QUICK) -> None:
    """Run a scenario against a gateway with a worker a model."""

    async def run() -> None:
        async with asyncio.timeout(90), gateway(*models, supervision=supervision) as (it, server):
            await scenario(it, server)

    asyncio.run(run())


def pid_of(it: Gateway, model: str) -> int:
    pid = it.workers[model].pid
    assert pid is not None
    return pid


async def back(it: Gateway, model: str, old_pid: int) -> None:
    """Wait until a new process serves the model."""

    async def ready() -> bool:
        return it.workers[model].status == "ready" and it.workers[model].pid != old_pid

    await eventually(ready, f"{model} is back")


def test_a_killed_worker_ends_its_streams_clearly_and_is_restarted() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        call = server.generate(n=10_000, interval_s=0.01, bytes=100)
        await call.read()
        pid = pid_of(it, "fake")
        os.kill(pid, signal.SIGKILL)
        error = await broken(call)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "worker for model 'fake' died (signal 9); it is being restarted; retry"
        trailers = dict(error.trailing_metadata() or ())
        assert trailers["probewire-code"] == "UNAVAILABLE"
        assert float(trailers["retry-after-s"]) > 0
        await back(it, "fake", pid)
        assert len(await drained(server.generate())) == 5
        report = await it.health()
        assert report.detail == "1 of 1 models ready; fake was restarted 1 times"

    over_gateway(scenario, "fake")


def test_while_it_restarts_requests_are_told_and_health_says_why() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        os.kill(pid_of(it, "fake"), signal.SIGKILL)

        async def restarting() -> bool:
            return it.workers["fake"].state == "restarting"

        await eventually(restarting, "the death is noticed")
        report = await it.health()
        assert not report.ready
        assert report.models["fake"] == "restarting: the worker died (signal 9); restart 1 of 8"
        error = await broken(server.generate())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "is restarting (the worker died (signal 9)" in (error.details() or "")
        assert [info.id for info in await it.models()] == ["fake"]

    over_gateway(scenario, "fake", supervision=replace(QUICK, backoff_s=60, backoff_max_s=60))


def test_when_one_of_two_dies_the_others_stream_goes_on() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        other, doomed = (server.generate(model, n=100, interval_s=0.01) for model in ("a", "b"))
        await asyncio.gather(other.read(), doomed.read())
        os.kill(pid_of(it, "b"), signal.SIGKILL)
        assert "model 'b' died" in ((await broken(doomed)).details() or "")
        assert len(await drained(other)) == 101
        assert (await it.health()).ready

    over_gateway(scenario, "a", "b")


def test_a_hung_worker_is_killed_and_restarted() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        pid = pid_of(it, "fake")
        call = server.generate(n=2, hang=True, interval_s=0)
        assert len(await drained(call)) == 4
        stuck = server.generate(n=1, interval_s=3600)
        error = await broken(stuck)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "died (signal 9: no answer to a health probe within 0.3 s, 2 times in a row)" in (error.details() or "")
        await back(it, "fake", pid)
        assert await drained(server.generate())

    over_gateway(scenario, "fake", supervision=replace(QUICK, probe_timeout_s=0.3))


def test_a_worker_that_answers_no_probe_but_whose_streams_move_is_left_alone() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        pid = pid_of(it, "fake")
        started = time.monotonic()
        assert len(await drained(server.generate(n=40, hang=True, interval_s=0.05))) == 42
        assert time.monotonic() - started > 3 * (0.2 + 0.2)
        assert pid_of(it, "fake") == pid

    over_gateway(scenario, "fake", supervision=replace(QUICK, probe_timeout_s=0.2, probe_strikes=3))


def test_a_stopped_process_counts_as_hung() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        pid = pid_of(it, "fake")
        os.kill(pid, signal.SIGSTOP)
        await back(it, "fake", pid)

    over_gateway(scenario, "fake", supervision=replace(QUICK, probe_timeout_s=0.3))


def test_a_worker_that_dies_again_and_again_is_given_up_and_can_be_loaded_again() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        async def killed_until_failed() -> bool:
            worker = it.workers["fake"]
            if worker.state == "ready":
                with suppress(ProcessLookupError):  # it has ended, and the gateway is about to hear of it
                    os.kill(pid_of(it, "fake"), signal.SIGKILL)
            return worker.state == "failed"

        await eventually(killed_until_failed, "the model is given up")
        status = (await it.health()).models["fake"]
        assert status.startswith("failed: the worker died 3 times in a row, at last: signal 9")
        assert "load it again" in ((await broken(server.generate())).details() or "")
        await loaded(it, "fake")
        assert await drained(server.generate())

    over_gateway(scenario, "fake", supervision=replace(QUICK, max_restarts=2))


def test_a_load_whose_process_cannot_be_started_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            with pytest.raises(Unavailable, match=r"no process could be started for model 'fake': .*/nowhere/python"):
                await loaded(it, "fake")
            assert it.workers == {}
        await loaded(it, "fake")

    over_gateway(scenario)


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")]
)
def test_a_restart_whose_process_cannot_be_started_is_tried_again_as_after_a_death(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        start, failures = asyncio.create_subprocess_exec, [error, error]

        async def refusing(*args: object, **options: object) -> object:
            if failures:
                raise failures.pop()
            return await start(*args, **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
        pid = pid_of(it, "fake")
        os.kill(pid, signal.SIGKILL)
        await back(it, "fake", pid)
        assert failures == []
        assert it.workers["fake"].restarts == 3

    over_gateway(scenario, "fake")


def test_restarts_that_all_fail_end_in_words_and_it_can_be_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/nowhere/python")
            os.kill(pid_of(it, "fake"), signal.SIGKILL)

            async def failed() -> bool:
                return it.workers["fake"].state == "failed"

            await eventually(failed, "it is given up")
        error = await broken(server.generate())
        assert "the worker died 3 times in a row, at last: no process could be started" in (error.details() or "")
        await loaded(it, "fake")
        assert await drained(server.generate())

    over_gateway(scenario, "fake", supervision=replace(QUICK, max_restarts=2))


def test_a_worker_comes_back_although_a_cleaner_took_the_folder_of_its_socket() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        pid = pid_of(it, "fake")
        shutil.rmtree(it.roster.folder)
        os.kill(pid, signal.SIGKILL)
        await back(it, "fake", pid)
        assert await drained(server.generate())
        assert it.roster.folder.stat().st_mode & 0o777 == 0o700

    over_gateway(scenario, "fake")


def test_a_worker_whose_first_answers_cannot_be_used_fails_to_load() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        with pytest.raises(Internal, match="first answers cannot be used: IndexError"):
            await loaded(it, "fake/none")
        assert it.workers == {}

    over_gateway(scenario)


def test_a_fault_in_looking_after_a_worker_ends_in_words_and_not_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        monkeypatch.setattr(it.workers["fake"]._watch, "_supervision", None)  # the next probe fails in our own code
        call = server.generate(n=10_000, interval_s=0.01)

        async def failed() -> bool:
            return it.workers["fake"].state == "failed"

        await eventually(failed, "it is given up")
        assert "looking after it failed" in ((await broken(call)).details() or "")
        assert "looking after its worker failed: AttributeError" in ((await broken(server.generate())).details() or "")
        await loaded(it, "fake")
        assert await drained(server.generate())

    over_gateway(scenario, "fake")


def test_a_line_among_the_reports_that_is_none_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho 7; echo '{{\"error\": 1}}'; echo what; exec '{sys.executable}' \"$@\"\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))

    async def scenario(it: Gateway, server: Served) -> None:
        await loaded(it, "fake")
        assert await drained(server.generate())

    over_gateway(scenario)


def test_unloading_ends_the_process_and_tells_its_requests() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        call = server.generate("a", n=100_000, interval_s=0.01)
        await call.read()
        short = server.generate("a", n=20, interval_s=0.01)
        await short.read()
        pid = pid_of(it, "a")
        unloading = asyncio.create_task(it.unload("a"))
        assert len(await drained(short)) == 21
        assert "model 'a' was unloaded" in ((await broken(call)).details() or "")
        await unloading
        assert not psutil.pid_exists(pid)
        assert list(it.workers) == ["b"]
        assert await drained(server.generate())

    over_gateway(scenario, "a", "b")


def test_unloading_ends_a_load_too() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        loading = asyncio.create_task(loaded(it, "fake/slow"))

        async def reading() -> bool:
            worker = it.workers.get("fake/slow")
            return worker is not None and worker.status == "loading: read weights 100 %"

        await eventually(reading, "the load is on its way")
        error = await broken(server.generate())
        assert "is loading (read weights 100 %)" in (error.details() or "")
        await it.unload("fake/slow")
        with pytest.raises(Unavailable, match="was unloaded while it was loading"):
            await loading
        assert it.workers == {}

    over_gateway(scenario)


def test_a_caller_who_leaves_a_load_does_not_end_it() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        progress = it.load(LoadRequest("fake"))
        await anext(progress)
        await progress.aclose()  # pyright: ignore[reportAttributeAccessIssue]  it is an async generator
        await loaded(it, "fake")
        assert it.workers["fake"].status == "ready"

    over_gateway(scenario)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no other system tells a process's environment")
def test_a_workers_libraries_are_bounded_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "99")

    async def scenario(it: Gateway, _: Served) -> None:
        given = psutil.Process(pid_of(it, "a")).environ()
        names = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
        assert [given[name] for name in names] == ["100000", "256", "99"]

    over_gateway(scenario, "a")


def test_closing_the_gateway_leaves_no_process_and_no_socket() -> None:
    left: list[int] = []

    async def scenario(it: Gateway, server: Served) -> None:
        left.extend(pid_of(it, model) for model in ("a", "b"))
        await it.close()

    over_gateway(scenario, "a", "b")
    assert [pid for pid in left if psutil.pid_exists(pid)] == []


def test_workers_end_when_the_gateway_is_killed(tmp_path: Path) -> None:
    script = """
        import asyncio, sys
        from serving import gateway

        async def main():
            async with gateway("fake") as (it, server):
                print(it.workers["fake"].pid, it.roster.folder, flush=True)
                await asyncio.sleep(3600)

        asyncio.run(main())
    """
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        worker = psutil.Process(int(pid))
        parent.kill()
        worker.wait(DEADLINE_S)
        shutil.rmtree(folder)
