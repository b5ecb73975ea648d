"""`probewire top`: what it draws of a report, and that it outlives its server."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fake_server import FakeServer  # pyright: ignore[reportMissingImports] - lies beside the clients' tests
from fake_service import FakeService  # pyright: ignore[reportMissingImports] - as above
from rich.console import Console
from tiny_terminal import Script, TinyTerminal

from probewire.cli.__main__ import main
from probewire.cli.top.command import Watch
from probewire.cli.top.screen import Sample, screen
from probewire.clients import Client, Unauthenticated, Unavailable
from probewire.protos.activity import ActivityReport, ModelActivity, RequestActivity, WorkerStatus

STATUS = WorkerStatus(
    running=3, held=1, waiting=2, n_slots=4, cache_used_tokens=500, cache_tokens=1000, steps=100, runs=10, rows=300,
    step_s=2.0, hook_s=0.5, tokens=1000,
)  # fmt: skip
LATER = replace(STATUS, steps=110, runs=13, rows=335, step_s=3.0, hook_s=0.6, tokens=1035)
MODEL = ModelActivity("small", "ready", "torch", "cuda:0", 1, 3 << 30, STATUS)
REQUESTS = (
    RequestActivity("r1", "ada", "small", "Inference.Generate", "running", ("resid_post.*", "logits"), "calm", 75.2, 1200, 5 << 20),
    RequestActivity("r2", "bob", "small", "Captures.Get", "waiting", (), "", 0.4, 0, 0),
    RequestActivity("r3", "ada", "small", "Inference.Run", "waiting", tuple(f"resid_post.{i}" for i in range(9)), "", 2.0, 0, 0),
)  # fmt: skip
REPORT = ActivityReport((MODEL,), REQUESTS, 7384.0)


def drawn(*arguments: object, width: int = 200) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(screen("grpc://box", *arguments))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # pyright: ignore[reportAttributeAccessIssue] - it is a StringIO


def test_a_frame() -> None:
    later = replace(REPORT, models=(replace(MODEL, status=LATER),))
    assert drawn(Sample(later, 12.0), Sample(REPORT, 10.0)) == [
        "probewire  grpc://box  up 2 h 3 min  1 running, 2 waiting",
        "",
        "model  state  backend       slots  held  waiting  cache         tok/s  batch  hooks  runs/s  restarts   memory",
        "small  ready  torch cuda:0  3/4    1     2        ████░░░░ 50%   17.5    3.5    10%     1.5         1  3.0 GiB",
        "",
        "user  model  operation     state    sites                          session    age  tokens  captured",
        "ada   small  Generate      running  resid_post.*, logits           calm      1:15   1,200   5.0 MiB",
        "bob   small  Captures.Get  waiting  –                                       0.4 s       0       0 B",
        "ada   small  Run           waiting  resid_post.0, resid_post.1 +7           2.0 s       0       0 B",
        "",
        "user  running  waiting  tokens  captured",
        "ada         1        1   1,200   5.0 MiB",
        "bob         0        1       0       0 B",
    ]


def test_speeds_are_unknown_at_first_and_after_a_restart() -> None:
    unknown = ["50%", "–", "–", "–", "–"]
    assert speeds(Sample(REPORT, 12.0), None) == unknown
    reborn = replace(MODEL, restarts=2, status=WorkerStatus(n_slots=4, cache_used_tokens=500, cache_tokens=1000))
    assert speeds(Sample(replace(REPORT, models=(reborn,)), 12.0), Sample(REPORT, 10.0)) == unknown
    assert speeds(Sample(REPORT, 12.0), Sample(REPORT, 10.0)) == ["50%", "0.0", "–", "–", "0.0"]  # idle


def speeds(*samples: Sample | None) -> list[str]:
    """From the cache's share to runs/s, of the one model."""
    [line] = [line for line in drawn(*samples) if line.startswith("small")]
    return line.split()[8:13]


def test_a_narrow_terminal_gets_what_matters_most() -> None:
    later = replace(REPORT, models=(replace(MODEL, id="SmolLM2-135M-Instruct", status=LATER),))
    lines = drawn(Sample(later, 12.0), None, "x" * 100, width=80)
    assert max(map(len, lines)) <= 80
    assert lines[1].endswith("x…")
    assert lines[3] == "model         state  slots  waiting  cache         tok/s  batch  hooks  restarts"
    assert lines[4].startswith("SmolLM2-135…  ready  3/4    2        ████░░░░ 50%")
    assert lines[7] == "ada   small  Generate    running  resid_post.…  calm      1:15   1,200   5.0 MiB"
    tiny = drawn(Sample(later, 12.0), None, width=50)
    assert max(map(len, tiny)) <= 50


def test_an_empty_box_is_friendly() -> None:
    lines = drawn(Sample(ActivityReport(), 0.0), None)
    assert "no models are loaded" in lines
    assert "nothing is running" in lines


def test_more_requests_than_room() -> None:
    report = replace(REPORT, requests=REPORT.requests[:1] * 30)
    lines = drawn(Sample(report, 0.0), None, "", 5)
    assert sum("resid_post.*" in line for line in lines) == 5
    assert "… and 25 more" in lines
    assert any(line.split() == ["ada", "30", "0", "36,000", "150.0", "MiB"] for line in lines)  # totals are of all


def test_what_a_user_named_is_no_markup() -> None:
    named = replace(REPORT.requests[0], session="[red]x[/red] [/]")
    assert any("[red]x[/red] [/]" in line for line in drawn(Sample(replace(REPORT, requests=(named,)), 0.0), None))


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeService())
    server.service.report = REPORT
    yield server
    server.stop()


def test_once(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    for url in (server.grpc_url, server.http_url):
        assert main(["top", "--once", "--interval", "0.05", "--url", url]) == 0
        captured = capsys.readouterr()
        assert f"probewire  {url}  up 2 h 3 min  1 running, 2 waiting" in captured.out
        assert "resid_post.*, logits" in captured.out
        assert "\x1b" not in captured.out
        assert captured.err == ""


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", "grpc://127.0.0.1:1"]) == 2
    assert "start a server with `probewire serve`" in capsys.readouterr().err


def test_an_interval_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("0", "-1", "nan", "inf"):
        assert main(["top", "--interval", value]) == 2
        assert "--interval is a number of seconds" in capsys.readouterr().err


def test_it_outlives_its_server() -> None:
    service = FakeService()
    service.report = REPORT
    client = Client(service=service)
    watch = Watch(client)
    watch.look()
    assert "has restarted" not in text(watch)

    def gone() -> ActivityReport:
        raise Unavailable("the worker has gone")

    service.activity = gone
    watch.look()
    assert "no answer, trying again: the worker has gone" in text(watch)
    assert "resid_post.*" in text(watch)  # what was last known
    with pytest.raises(Unavailable):
        watch.look(again=False)
    del service.activity
    service.report = replace(REPORT, uptime_s=0.5)
    watch.look()
    assert "the server has restarted" in text(watch)
    assert "no answer" not in text(watch)


def test_a_key_that_is_no_longer_good_ends_it() -> None:
    service = FakeService()
    watch = Watch(Client(service=service))
    watch.look()

    def refused() -> ActivityReport:
        raise Unauthenticated("revoked")

    service.activity = refused
    with pytest.raises(Unauthenticated):
        watch.look()


def text(watch: Watch) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(watch.frame())
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue] - it is a StringIO


def test_live_until_q(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "150"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    master, slave = os.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(os.dup(slave), "w") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        with TinyTerminal(master, Script(("resid_post.*", ""), ("resid_post.*", "q")), width=150) as terminal:
            assert main(["top", "--interval", "0.1", "--url", server.grpc_url]) == 0
            stdout.flush()
        terminal.finish()
    os.close(master)
    assert terminal.raw.startswith("\x1b[?1049h")
    assert "\x1b[?1049l" in terminal.raw  # the screen is as before
