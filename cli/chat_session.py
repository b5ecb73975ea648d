"""The state of a chat: the conversation so far, what steers it and what is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..clients.client import Client, SamplingOptions
from ..clients.prompts import Prompt
from ..clients.stream import Stream
from ..protos.model import Message, ModelInfo
from .chat_shows import Show
from .chat_steering import Steering

__all__ = ["Session"]


@dataclass(eq=False, slots=True)
class Session:
    """One conversation with one model."""

    client: Client
    info: ModelInfo
    system: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    steerings: list[Steering] = field(default_factory=list[Steering])
    shows: list[Show] = field(default_factory=list[Show])
    history: list[Message] = field(default_factory=list[Message])
    words: dict[int, str] = field(default_factory=dict[int, str])
    """Texts of token ids that were shown."""
    largest: dict[Show, float] = field(default_factory=dict[Show, float])
    """The largest size of what is shown so far, which bars are drawn against."""

    def say(self, text: str) -> None:
        """The user's turn."""
        self.history.append(Message("user", text))

    def hear(self, text: str) -> None:
        """The model's turn."""
        self.history.append(Message("assistant", text))

    def take_back(self) -> None:
        """Forget a turn that got no answer."""
        self.history.pop()

    def start(self) -> Stream:
        """The reply to the conversation so far, as it comes."""
        hooks = [steering.hook() for steering in self.steerings]
        shows = [show.hook() for show in self.shows]
        return self.client.stream(self._prompt(), hooks=hooks, capture=shows, model=self.info.id, **self.sampling)

    def _prompt(self) -> Prompt:
        if not self.info.chat_template:
            return "".join(message.content for message in self.history)
        system = [Message("system", self.system)] if self.system else []
        return [*system, *self.history]

    def word(self, token_id: int) -> str:
        """A token's text, asked of the server once."""
        if token_id not in self.words:
            self.words[token_id] = self.client.tokenize([token_id], model=self.info.id).tokens[0]
        return self.words[token_id]

    def settings(self) -> list[str]:
        """What is switched on, a line each."""
        steering = [f"steer {item}" for item in self.steerings]
        return steering + [f"show  {mark} {show}" for mark, show in zip("abcdefgh", self.shows, strict=False)]
