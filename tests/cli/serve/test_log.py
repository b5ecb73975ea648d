"""The server's log as JSON lines: each parses, and names the request that it is about."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_process import DEADLINE_S, ready, started

from probewire.cli.serve.log import start_log
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import User


@pytest.fixture
def quiet_after() -> Iterator[None]:
    """Give the root logger back as it was."""
    root, ours = logging.getLogger(), logging.getLogger("probewire")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


def logged() -> None:
    """Two lines, one about a request."""
    log = logging.getLogger("probewire.server.gateway.gateway")
    log.info('two\nlines, %d %% and a "quote"', 5)
    CALLER.set(Caller(User("ada", "researcher"), "req-1"))
    try:
        raise ValueError("what went\nwrong")
    except ValueError:
        log.exception("it failed: \u2028 é")


@pytest.mark.usefixtures("quiet_after")
def test_a_line_is_an_object_whatever_was_logged(capsys: pytest.CaptureFixture[str]) -> None:
    start_log(as_json=True)
    Context().run(logged)
    logging.getLogger("another.library").warning("theirs")
    logging.getLogger("another.library").info("of other libraries only what went wrong")
    told = capsys.readouterr()
    assert told.out == ""
    first, second, third = lines_of(told.err)
    assert {**first, "time": 0} == {
        "time": 0,
        "level": "INFO",
        "logger": "probewire.server.gateway.gateway",
        "message": 'two\nlines, 5 % and a "quote"',
    }
    assert (second["request"], second["user"], second["level"]) == ("req-1", "ada", "ERROR")
    assert second["error"].startswith("Traceback")
    assert second["error"].endswith("ValueError: what went\nwrong\n")
    assert (third["logger"], third["message"]) == ("another.library", "theirs")


def test_the_command_logs_a_failed_request_under_the_id_that_its_caller_saw(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"
    options = ("--port", "0", "--grpc-port", "0", "--ready-file", str(file), "--drain", "1", "--log-json")
    with started("fake", *options) as process:
        url = ready(process, file)["http"]
        # A deadline that passes within a stream: all that is left is to break it off, and that is one line, no fault.
        script = json.dumps({"interval_s": 0.02})
        body = {"text": script, "stream": True, "sampling": {"max_new_tokens": 5000}}
        with httpx.stream(
            "POST", f"{url}/v1/generate", json=body, headers={"x-timeout-s": "1"}, timeout=DEADLINE_S
        ) as response:
            seen = response.headers["x-request-id"]
            with pytest.raises(httpx.RemoteProtocolError):
                response.read()
        process.terminate()
        output, _ = process.communicate(timeout=DEADLINE_S)
    plain = [line for line in output.splitlines() if not line.startswith("{")]
    assert not [line for line in plain if "Traceback" in line or "ERROR" in line], plain
    lines = lines_of("\n".join(line for line in output.splitlines() if line.startswith("{")))
    assert "model fake is ready" in " ".join(line["message"] for line in lines)
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    about = [line for line in lines if line.get("request") == seen]
    assert about, lines
    assert about[-1]["level"] == "INFO"
    assert "error" not in about[-1]
    assert "broken off: the request did not end within x-timeout-s: 1" in about[-1]["message"]
    assert about[-1]["user"] == "local"
