"""`probewire top`: who is running what, live in the terminal."""

from __future__ import annotations

import argparse
import math
import sys
import time

from rich.console import Console, RenderableType
from rich.live import Live

from ...clients.client import Client
from ...protos.errors import DeadlineExceeded, InvalidArgument, Unavailable
from ..connection import add_connection_arguments, connected
from ..keys import Keyboard, keyboard
from .screen import Sample, screen

__all__ = ["Watch", "add_arguments", "run"]

TIMEOUT_S = 10.0
"""A server that takes longer over a report is as good as away."""
NOTE_S = 10.0
"""How long a restart is told of."""
WIDE = 200
"""Columns where no terminal says how many there are."""
OTHER_LINES = 12
"""Of a frame, besides a line a model, a request and a user."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire top` takes."""
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between frames (%(default)s)")
    parser.add_argument(
        "--once", action="store_true", help="one plain frame, after one interval: speeds need two looks"
    )
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Watch until q or Ctrl-C; where the output is no terminal, print frame after frame."""
    if not 0.05 <= args.interval < math.inf:
        raise InvalidArgument(f"--interval is a number of seconds from 0.05, got {args.interval:g}")
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    with connected(args, timeout_s=TIMEOUT_S) as client:
        watch = Watch(client)
        watch.look()
        try:
            if args.once:
                time.sleep(args.interval)
                watch.look(again=False)
                console.print(watch.frame())
            elif console.is_terminal:
                _live(console, watch, args.interval)
            else:
                _plain(console, watch, args.interval)
        except KeyboardInterrupt:
            return 0
    return 0


def _live(console: Console, watch: Watch, interval_s: float) -> None:
    with keyboard(sys.stdin) as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(watch.frame(console.height - OTHER_LINES), refresh=True)
            if _quits(keys, interval_s):
                return
            watch.look()


def _quits(keys: Keyboard | None, interval_s: float) -> bool:
    """Wait; whether q was pressed meanwhile."""
    end_s = time.monotonic() + interval_s
    while (left_s := end_s - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left_s)
        elif "q" in keys.read(left_s):
            return True
    return False


def _plain(console: Console, watch: Watch, interval_s: float) -> None:
    while True:
        time.sleep(interval_s)
        watch.look()
        console.print(watch.frame())
        console.print()


class Watch:
    """The last two reports of a server, and what happened to it. It outlives the server: it says so, and keeps trying."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._now: Sample | None = None
        self._before: Sample | None = None
        self._lost = ""
        self._restarted_s = -math.inf

    def look(self, *, again: bool = True) -> None:
        """Fetch a report. Raises when the server cannot be reached, but not `again` once it has been."""
        try:
            report = self._client.activity()
        except (Unavailable, DeadlineExceeded) as error:
            if self._now is None or not again:
                raise
            self._lost = f"no answer, trying again: {error.message}"
            return
        now, before = Sample(report, time.monotonic()), self._now
        self._lost = ""
        if before is not None and report.uptime_s < before.report.uptime_s:
            self._restarted_s, before = now.at_s, None
        self._now, self._before = now, before

    def frame(self, room: int = 50) -> RenderableType:
        """The screen as it is now; `room` is for lines of models, requests and users."""
        assert self._now is not None
        report = self._now.report
        room -= len(report.models) + len({request.user for request in report.requests})
        return screen(self._client.address, self._now, self._before, self._note(), max(3, room))

    def _note(self) -> str:
        if self._lost:
            return self._lost
        return "the server has restarted" if time.monotonic() - self._restarted_s < NOTE_S else ""
