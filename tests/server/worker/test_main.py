"""What a worker process says on what was its standard output, and how it ends; in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import orjson
import pytest

from probewire.protos.wire.codec import to_json
from probewire.server.config import WORKER_MODULE, WorkerConfig

TESTS = Path(__file__).parents[1]


def told(program: str) -> tuple[list[dict[str, object]], str]:
    """The reports of a program that has a ReportPipe, and its log."""
    head = "import os, sys, subprocess\nfrom probewire.server.worker.main import ReportPipe\npipe = ReportPipe()\n"
    done = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_reports_are_lines_of_json_and_prints_go_to_the_log() -> None:
    program = """
from probewire.protos.errors import NotFound
print("a library prints")
sys.stdout.flush()
pipe.progress("load", 0, None)
os.write(1, b"from below\\n")
subprocess.run(["echo", "a child prints"], check=True)
pipe.ready()
pipe.error(NotFound("no “checkpoint”"))
"""
    reports, log = told(program)
    assert reports == [
        {"stage": "load", "done": 0, "total": 0},
        {"ready": True},
        {"error": "NOT_FOUND", "message": "no “checkpoint”"},
    ]
    for line in ("a library prints", "from below", "a child prints"):
        assert line in log


def test_progress_is_told_seldom_but_every_stage_and_its_end() -> None:
    program = """
from probewire.server.worker import main
main.REPORT_INTERVAL_S = 3600.0
for done in range(1001):
    pipe.progress("read", done, 1000)
pipe.progress("check", 0, 10)
pipe.progress("check", 5, 10)
"""
    reports, _ = told(program)
    assert [(report["stage"], report["done"]) for report in reports] == [("read", 0), ("read", 1000), ("check", 0)]


def test_threads_do_not_mix_their_lines() -> None:
    program = """
import threading
def work(name):
    for i in range(200):
        pipe.progress(name + str(i), i, 1)
threads = [threading.Thread(target=work, args=(name * 100,)) for name in "abcd"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    reports, _ = told(program)
    assert len(reports) == 800


class Worker:
    """A worker process of the fakes."""

    def __init__(self, folder: Path, model: str = "fake", factory: str = "fake_worker:make") -> None:
        config = WorkerConfig(model, "m", address=f"unix:{folder / 'worker.sock'}", factory=factory, drain_s=0.2)
        path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER_MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(orjson.dumps(to_json(config)) + b"\n")
        self.process.stdin.flush()
        self._watchdog = threading.Timer(60.0, self.process.kill)
        self._watchdog.start()

    def reports(self, until: str) -> list[dict[str, object]]:
        """What it says up to a kind of report, or to its end."""
        found: list[dict[str, object]] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found.append(json.loads(line))
            if until in found[-1]:
                break
        return found

    def end(self) -> int:
        """Wait for it, its standard input open as the gateway's is; gives its exit code."""
        code = self.process.wait()
        self._watchdog.cancel()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return code


def test_it_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    reports = worker.reports("ready")
    assert reports[-1] == {"ready": True}
    assert {report["stage"] for report in reports[:-1]} == {"read weights"}
    assert (tmp_path / "worker.sock").exists(), "its socket is open"
    worker.process.send_signal(signal.SIGINT)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_it_ends_with_its_gateway(tmp_path: Path) -> None:
    """Whose death closes its standard input."""
    worker = Worker(tmp_path)
    worker.reports("ready")
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.end() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("model", "factory", "code", "message"),
    [
        ("fake/broken", "fake_worker:make", "INVALID_ARGUMENT", "config.json is no model's"),
        ("fake/bug", "fake_worker:make", "INTERNAL", "loading 'fake/bug' failed: RuntimeError: out of memory"),
        ("fake", "no_such_module:make", "INTERNAL", "loading 'fake' failed: ModuleNotFoundError"),
    ],
)
def test_why_it_cannot_load_is_its_last_report(
    tmp_path: Path, model: str, factory: str, code: str, message: str
) -> None:
    worker = Worker(tmp_path, model, factory)
    last = worker.reports("error")[-1]
    assert last["error"] == code
    assert str(last["message"]).startswith(message)
    assert worker.end() == 1


def test_one_that_is_told_to_end_while_it_loads_ends_at_once(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "fake/slow")
    assert worker.reports("stage")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
