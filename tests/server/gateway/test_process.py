"""One run of a worker, as a small program of the test: its reports, its log, its error, and every way to end it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from probewire.protos.errors import Internal, NotFound, ProbewireError, Unavailable
from probewire.protos.loading import LoadProgress
from probewire.protos.wire.codec import from_json
from probewire.server.config import WorkerConfig
from probewire.server.gateway import process as module
from probewire.server.gateway.process import WorkerProcess

CONFIG = WorkerConfig(model="org/m", id="m", address="unix:/tmp/x")
READY = "say(ready=True)"
HEAD = """
import json, os, signal, sys, time

def say(**report):
    print(json.dumps(report), flush=True)

config = json.loads(sys.stdin.readline())
"""
WAIT = """
sys.stdin.read()
"""


class Program:
    """Takes the worker's place: what it does is written by the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setattr(module, "WORKER_MODULE", "pretended_worker")
        monkeypatch.setenv("PYTHONPATH", str(folder))

    def run(self, body: str, scenario: Callable[[WorkerProcess], Awaitable[None]], *, waits: bool = True) -> list[str]:
        """Start it, play, and see that nothing of it is left; gives the progress it told."""
        (self.folder / "pretended_worker.py").write_text(HEAD + textwrap.dedent(body) + (WAIT if waits else ""))
        seen: list[str] = []

        def progress(told: LoadProgress) -> None:
            seen.append(f"{told.stage} {told.done}/{told.total}")

        async def play() -> None:
            async with asyncio.timeout(30):
                process = await WorkerProcess.start(CONFIG, progress)
                try:
                    await scenario(process)
                finally:
                    process.kill()
                    await process.ended.wait()

        asyncio.run(play())
        return seen


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path, monkeypatch)


async def ready(process: WorkerProcess) -> None:
    await process.ready(20.0)


async def error_of(process: WorkerProcess) -> ProbewireError:
    with pytest.raises(ProbewireError) as caught:
        await process.ready(20.0)
    return caught.value


# ---- the start -------------------------------------------------------------------------------------------------------


def test_a_worker_is_told_its_config_and_says_when_it_serves(program: Program) -> None:
    body = f"""
    open({str(program.folder / "told")!r}, "w").write(json.dumps(config))
    say(stage="read weights", done=1, total=2)
    say(stage="check")
    {READY}
    """
    assert program.run(body, ready) == ["read weights 1/2", "check 0/0"]
    assert from_json(WorkerConfig, json.loads((program.folder / "told").read_text())) == CONFIG


def test_a_worker_has_a_process_group_of_its_own_and_our_settings(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    body = """
    spin = int(os.environ["GOMP_SPINCOUNT"])
    say(stage=f"{os.getpgid(0) == os.getpid()}", done=spin, total=int(os.environ["LRU_CACHE_CAPACITY"]))
    say(ready=True)
    """
    assert program.run(body, ready) == ["True 100000/7"], "what the user has set wins"


@pytest.mark.parametrize(
    ("name", "kind"), [("NOT_FOUND", NotFound), ("UNAVAILABLE", Unavailable), ("WHATEVER", Internal)]
)
def test_an_error_of_the_worker_is_raised_as_its_own(program: Program, name: str, kind: type[ProbewireError]) -> None:
    async def scenario(process: WorkerProcess) -> None:
        error = await error_of(process)
        assert (type(error), error.message) == (kind, "no checkpoint at 'org/m'")

    program.run(f'say(error="{name}", message="no checkpoint at \'org/m\'")', scenario)


def test_what_comes_after_the_outcome_changes_nothing(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        await process.ended.wait()
        await ready(process)

    late = f'{READY}; say(error="INTERNAL", message="late"); say(stage="more")'
    assert program.run(late, scenario, waits=False) == ["more 0/0"]


def test_lines_that_are_no_reports_are_passed_over(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    body = r"""
    sys.stdout.write('a library prints\n\n{"stage"\n"stage"\n5\n{"error": "NOT_FOUND"}\n')
    sys.stdout.write('\rprogress bar\r{"stage": "a"}\r')
    say(ready=True)
    """
    with caplog.at_level(logging.WARNING):
        assert program.run(body, ready) == ["a 0/0"]
    assert "unexpected report: a library prints" in caplog.text


@pytest.mark.parametrize("line", ["{}", "[]", '{"loss": 0.5}', '"done"'])
def test_json_that_is_no_report_does_not_make_it_ready(program: Program, line: str) -> None:
    async def scenario(process: WorkerProcess) -> None:
        assert (await error_of(process)).message == "too large"

    program.run(f'print({line!r}); say(error="RESOURCE_EXHAUSTED", message="too large")', scenario)


def test_a_report_may_be_long(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        assert (await error_of(process)).message == "x" * 300_000

    program.run('say(error="INTERNAL", message="x" * 300_000)', scenario)


def test_a_silent_worker_is_ended(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        with pytest.raises(Unavailable, match="the worker died while loading") as caught:
            await process.ready(0.2)
        assert "(signal 9: it reported nothing for 0.2 s while loading)" in caught.value.message

    program.run("", scenario)


def test_a_worker_that_dies_while_it_loads_is_told_with_its_last_words(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(process: WorkerProcess) -> None:
        error = await error_of(process)
        assert isinstance(error, Unavailable)
        first, *words = error.message.split("\n")
        assert first == "the worker died while loading (exit code 3); its last words:"
        assert words == [f"line {i}" for i in range(6, 20)] + ["the end"], "the last fifteen"
        assert process.ending == "exit code 3"

    body = """
    for i in range(20):
        sys.stderr.write(f"line {i}\\n")
    sys.stderr.write("the end")
    sys.stderr.flush()
    os._exit(3)
    """
    with caplog.at_level(logging.INFO):
        program.run(body, scenario)
    assert "line 0" in [record.message for record in caplog.records if record.name == "probewire.worker.m"]


def test_a_process_that_cannot_be_started_is_said_so(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(OSError, match="No such file"):
        program.run("", ready)


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_asked_to_end_ends_by_itself(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        await process.stop(20.0)
        assert process.ending == "exit code 0"
        assert process.ended.is_set()
        await process.stop(20.0)

    program.run(f"signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); {READY}", scenario)


def test_one_that_does_not_end_in_time_is_killed(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        await process.stop(0.1)
        assert process.ending == "signal 9"

    with caplog.at_level(logging.WARNING):
        program.run(f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}", scenario)
    assert "did not end within 0.1 s; killing it" in caplog.text


def test_whatever_it_started_ends_with_it(program: Program) -> None:
    children: list[int] = []

    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        children.extend(child.pid for child in psutil.Process(process.pid).children())
        process.kill("it is not needed")
        await process.ended.wait()
        assert process.ending == "signal 9: it is not needed"

    program.run(f"import subprocess; subprocess.Popen(['sleep', '60']); {READY}", scenario)
    assert len(children) == 1
    end_s = time.monotonic() + 10
    while any(map(_lives, children)) and time.monotonic() < end_s:  # the signal went to all of the group at once
        time.sleep(0.01)
    assert not any(map(_lives, children))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_first_reason_is_the_one(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        process.kill("first")
        process.kill("second")
        await process.ended.wait()
        assert process.ending == "signal 9: first"

    program.run(READY, scenario)


def test_one_that_is_killed_by_others_is_told_by_the_signal(program: Program) -> None:
    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        os.kill(process.pid, signal.SIGSEGV)
        await process.ended.wait()
        assert process.ending == "signal 11"
        process.terminate()
        process.kill("too late")

    program.run(READY, scenario)


def test_a_child_that_outlives_it_does_not_hold_up_its_end(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child in a group of its own keeps the output open."""
    monkeypatch.setattr(module, "OUTPUT_GRACE_S", 0.1)

    async def scenario(process: WorkerProcess) -> None:
        await ready(process)
        [child] = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        try:
            await asyncio.wait_for(process.ended.wait(), 2.0)
            assert child.is_running()
        finally:
            child.kill()

    program.run(f"import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True); {READY}", scenario)
