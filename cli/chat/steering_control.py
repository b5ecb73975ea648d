"""What steers and watches a chat, and its live session on the server, which replies under way follow."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from ...clients.client import Client
from ...clients.session import LiveSession
from ...protos.errors import NotFound, ProbewireError
from ...protos.spec import Hook
from .shows import Show
from .steering import Steering

__all__ = ["Setting", "SteeringControl"]

STEP = 0.25
"""What one press of a key changes: a quarter of the strength that was set."""
NAME = "probewire chat"


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """Everything that is switched on."""

    steerings: tuple[Steering, ...] = ()
    shows: tuple[Show, ...] = ()
    strength: float = 1.0
    """Multiplies every alpha: what the keys change. Below 0 it steers the other way."""
    on: bool = True

    @property
    def steers(self) -> bool:
        """Whether anything is added at all."""
        return self.on and bool(self.strength) and bool(self.steerings)

    def steered(self) -> tuple[Steering, ...]:
        """The steerings as strong as they are now."""
        return tuple(replace(item, alpha=item.alpha * self.strength) for item in self.steerings)

    def hooks(self) -> list[Hook]:
        """As the server takes them. Shows come last, so that they see steered values."""
        steered = self.steered() if self.steers else ()
        return [*(item.hook() for item in steered), *(show.hook() for show in self.shows)]

    def pressed(self, keys: list[str]) -> Setting:
        """What it becomes by keys. A change of strength switches it on."""
        setting = self
        for key in keys:
            if key in ("up", "+", "="):
                setting = replace(setting, strength=setting.strength + STEP, on=True)
            elif key in ("down", "-", "_"):
                setting = replace(setting, strength=setting.strength - STEP, on=True)
            elif key == "0":
                setting = replace(setting, on=not setting.on)
        return setting

    def label(self) -> str:
        """The strength, in short."""
        if not self.steerings:
            return "no steering"
        return "× " + ", ".join(f"{item.alpha:g}" for item in self.steered()) if self.on else "off"

    def lines(self) -> list[str]:
        """What is switched on, a line each."""
        off = "" if self.on else "   (off; 0 while a reply streams, or /alpha, turns it on)"
        steering = [f"steer {item}{off}" for item in self.steered()]
        return steering + [f"show  {mark} {show}" for mark, show in zip("abcdefgh", self.shows, strict=False)]


class SteeringControl:
    """Holds the setting of a chat and tells the server first: what that refuses changes nothing."""

    def __init__(self, client: Client, model: str) -> None:
        self.setting = Setting()
        self._client, self._model = client, model
        self._live: LiveSession | None = None
        self._labels: dict[int, str] = {}

    def change(self, setting: Setting) -> None:
        """Take another setting, for the reply under way from its next token on. Raises what the server refuses."""
        hooks = setting.hooks()
        if self._live is not None:
            self._labels[self._live.revision + 1] = setting.label()  # its first token may be here before the answer
            try:
                self._live.update(hooks, force=True)
            except NotFound:
                self._live = None
        if self._live is None and hooks:
            self._live = self._client.session(hooks, name=NAME, model=self._model)
            self._labels = {self._live.revision: setting.label()}
        self.setting = setting

    def renew(self) -> None:
        """Make the session again, after the server has lost it."""
        self._live = None
        self.change(self.setting)

    @property
    def session(self) -> LiveSession | str:
        """What replies are bound to; empty while nothing was ever switched on."""
        return self._live or ""

    @property
    def revision(self) -> int:
        """Of the session; 0 without one."""
        return 0 if self._live is None else self._live.revision

    def label(self, revision: int) -> str:
        """A revision, behind its strength if this chat made it: one word, which no line breaks."""
        return "·".join(filter(None, (self._labels.get(revision, "").replace(" ", ""), f"r{revision}")))

    def close(self) -> None:
        """Forget the session; a server that is gone is no reason to complain at the end."""
        if self._live is not None:
            with suppress(ProbewireError):
                self._live.delete()
