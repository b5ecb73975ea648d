"""`probewire serve` as a process of its own, over workers that hold pretended models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER_TESTS = Path(__file__).parents[1] / "server"

DEADLINE_S = 40.0


@contextmanager
def started(*arguments: str) -> Generator[subprocess.Popen[str]]:
    """The command with a fake factory; killed on leaving if it still runs."""
    path = os.pathsep.join([str(SERVER_TESTS), *filter(None, sys.path)])
    command = [sys.executable, "-m", "probewire.cli", "serve", "--factory", "fake_worker:make", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str], file: Path) -> dict[str, Any]:
    """What the ready file says, once it is there."""
    deadline = time.monotonic() + DEADLINE_S
    while not file.exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(file.read_bytes())
