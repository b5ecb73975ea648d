"""As much of a terminal as the chat's screen needs, and a user who answers what stands on it."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from types import TracebackType
from typing import Self

LIMIT_S = 30.0

_CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b.|[\x00-\x1f\x7f]|[^\x00-\x1f\x7f\x1b]+", re.DOTALL)


class Screen:
    """Lines of text, changed by what is written: cursor up, erased lines, carriage returns. Nothing scrolls away."""

    def __init__(self, width: int) -> None:
        self._width, self._lines, self._row, self._column = width, [""], 0, 0

    def write(self, text: str) -> None:
        for found in _CODE.finditer(text):
            code, count = found[2], int(found[1]) if (found[1] or "").isdecimal() else 1
            if code == "A":
                self._row = max(0, self._row - count)
            elif code == "K":
                self._lines[self._row] = "" if count == 2 else self._lines[self._row][: self._column]
            elif found[0] == "\n":
                self._down()
            elif found[0] == "\r":
                self._column = 0
            elif found[0][0] >= " ":
                self._put(found[0])

    def _put(self, text: str) -> None:
        for letter in text:
            if self._column == self._width:
                self._down()
                self._column = 0
            line = self._lines[self._row].ljust(self._column)
            self._lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append("")

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._lines)


class Script:
    """What to type, or which signal to send, and after which new text on the screen."""

    def __init__(self, *turns: tuple[str, str | signal.Signals]) -> None:
        self.turns = list(turns)


class TinyTerminal:
    """Reads the master side of a pseudo-terminal in a thread, and plays a script."""

    def __init__(self, master: int, script: Script, width: int) -> None:
        self._master, self._script, self._screen = master, script, Screen(width)
        self.raw, self._seen = "", 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        held, end_s = b"", time.monotonic() + LIMIT_S
        while not self._stop.is_set() or select.select([self._master], [], [], 0)[0]:
            if not select.select([self._master], [], [], 0.02)[0]:
                if (
                    time.monotonic() > end_s
                ):  # whoever waits for a line is sent away, and `finish` says where it stopped
                    os.write(self._master, b"\x04q")
                continue
            held += os.read(self._master, 65536)
            try:
                text = held.decode()
            except UnicodeDecodeError:  # half a letter
                continue
            if re.search(r"\x1b(\[[0-9;?]*)?\Z", text):
                continue
            held = b""
            self.raw += text
            self._screen.write(text)
            self._answer()

    def _answer(self) -> None:
        """Text counts once it is written whole, after what was answered last."""
        while self._script.turns:
            wanted, keys = self._script.turns[0]
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw)
            at = plain.find(wanted, self._seen)
            if at < 0:
                return
            self._seen = at + len(wanted)
            self._script.turns.pop(0)
            if isinstance(keys, str):
                os.write(self._master, keys.encode())
            else:
                os.kill(os.getpid(), keys)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def finish(self) -> None:
        """Everything in the script must have happened."""
        assert not self._script.turns, (self._script.turns, self.text())

    def text(self) -> str:
        return self._screen.text()
