"""Keys that change how a chat is steered while its reply streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.text import Text

from ...protos.errors import ProbewireError
from ..keys import Keyboard, keyboard
from .steering_control import SteeringControl

__all__ = ["Turning", "turning"]

LEAVE_S = 2.0
"""How long the end of a reply waits for a change that the server has not answered."""


class Turning:
    """What the keys do, and the line that tells of it."""

    def __init__(self, control: SteeringControl) -> None:
        self._control = control
        self._waiting = False
        self._refused = ""
        self.redraw: Callable[[], None] = lambda: None
        """Called from the keys' own thread when the line has changed."""

    def status(self) -> Text:
        """Strength, revision and keys."""
        if self._refused:
            return Text(f"not changed: {self._refused}", style="red", no_wrap=True, overflow="ellipsis")
        setting = self._control.setting
        revision = "…" if self._waiting else f"r{self._control.revision}"
        style = "yellow" if setting.steers else "dim"
        told = f"steering {setting.label()}", style
        keys = "   ↑ ↓ strength · 0 " + ("off" if setting.on else "on")
        return Text.assemble(told, f" · {revision}", (keys, "dim"), no_wrap=True, overflow="ellipsis")

    def press(self, keys: list[str]) -> None:
        """Change the steering. Keys that came together are one change."""
        setting = self._control.setting.pressed(keys)
        if setting is self._control.setting:
            return
        self._waiting, self._refused = True, ""
        self.redraw()
        try:
            self._control.change(setting)
        except ProbewireError as error:
            self._refused = error.message
        self._waiting = False
        self.redraw()


@contextmanager
def turning(control: SteeringControl) -> Generator[Turning | None]:
    """Listen to keys while the block runs; None where nothing steers, or where there are no keys to press."""
    if not control.setting.steerings:
        yield None
        return
    with keyboard() as keys:
        if keys is None:
            yield None
            return
        turned = Turning(control)
        thread = threading.Thread(target=_listen, args=(keys, turned), name="keys", daemon=True)
        thread.start()
        try:
            yield turned
        finally:
            turned.redraw = lambda: None
            keys.wake()
            thread.join(LEAVE_S)


def _listen(keys: Keyboard, turned: Turning) -> None:
    while not keys.woken:
        if pressed := keys.read():
            turned.press(pressed)
