"""Single keys from a terminal, while it goes on printing."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

__all__ = ["Keyboard", "keyboard", "parse"]

_KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(?:[\[O][0-9;]*)?\Z")
_NAMES = {"\x1b[A": "up", "\x1bOA": "up", "\x1b[B": "down", "\x1bOB": "down"}


def parse(text: str) -> tuple[list[str], str]:
    """Keys by name ("up", "down") or as they are, and the beginning of one that has not come whole."""
    unfinished = _UNFINISHED.search(text)
    end = unfinished.start() if unfinished else len(text)
    found = [match[0] for match in _KEY.finditer(text[:end])]
    return [name for key in found if not (name := _NAMES.get(key, key)).startswith("\x1b")], text[end:]


class Keyboard:
    """A terminal's keys as they are pressed."""

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, ""
        self._bell, self._cord = os.pipe()
        self._sources = [fd, self._bell]
        self.woken = False

    def read(self, timeout_s: float | None = None) -> list[str]:
        """Every key that has come; waits for one. Empty after `timeout_s`, when woken, or when the terminal is gone."""
        if self.woken:
            return []
        ready, _, _ = select.select(self._sources, [], [], timeout_s)
        if self._fd not in ready:
            return []
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:  # the terminal was closed: from now on only `wake` and time end a wait
            self._sources = [self._bell]
        keys, self._rest = parse(self._rest + data.decode("ascii", "ignore"))
        return keys

    def wake(self) -> None:
        """End a `read` that waits in another thread, and all later ones."""
        self.woken = True
        os.write(self._cord, b"\0")

    def close(self) -> None:
        """Let go of what `wake` needs; the terminal stays open."""
        os.close(self._bell)
        os.close(self._cord)


@contextmanager
def keyboard(stream: TextIO | None = None) -> Generator[Keyboard | None]:
    """The keys of a terminal, without echo and without waiting for Enter; None where `stream` is no terminal.

    However the block ends, the terminal is as before: by an error, Ctrl-C, or a signal that ends the process.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield None
        return
    stream = stream or sys.stdin
    if stream is None or not stream.isatty():  # a process without standard streams has None
        yield None
        return
    fd = stream.fileno()
    before = termios.tcgetattr(fd)
    keys = Keyboard(fd)
    with _exits():
        try:
            tty.setcbreak(fd, termios.TCSANOW)  # Ctrl-C stays Ctrl-C, and what was typed before is not thrown away
            yield keys
        finally:
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(fd, termios.TCSANOW, before)
            keys.close()


@contextmanager
def _exits() -> Generator[None]:
    """Signals that would end the process on the spot end it by an exception, so that `finally` runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _exit)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
