"""A helper process of the benchmarks: it waits for a line of JSON, works, answers with one, and waits again.

Between two questions it sleeps, so that it takes nothing from what is timed next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Child", "answer_lines", "log_file"]

BUILD = Path(__file__).resolve().parents[1] / "build" / "bench"
QUIT_S = 10.0

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def log_file(name: str) -> Path:
    """Where a process writes what it has to say."""
    folder = BUILD / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


class Child:
    """The near end."""

    def __init__(self, script: str, *arguments: str, python: str = sys.executable) -> None:
        self._log = log_file(script.removesuffix(".py"))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name(script)), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.hello = self._read()
        """What it said once it was ready."""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Its answer. Raises RuntimeError when it has died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a helper process died; its last words:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def answer_lines(answer: Answer, hello: dict[str, Any] | None = None) -> None:
    """The far end: say hello, then answer until standard input closes. Only answers reach standard output."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        print(json.dumps(hello or {}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), file=out, flush=True)
