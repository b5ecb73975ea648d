"""The state of a chat: the conversation so far, and what steers and watches it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...clients.client import Client
from ...clients.requests.prompts import Prompt
from ...clients.requests.sampling import SamplingOptions
from ...clients.stream import Stream
from ...protos.errors import NotFound
from ...protos.model import Message, ModelInfo
from .shows import Show
from .steering_control import SteeringControl

__all__ = ["Conversation"]


@dataclass(eq=False, slots=True)
class Conversation:
    """One conversation with one model."""

    client: Client
    info: ModelInfo
    control: SteeringControl
    system: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
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
        try:
            return self._stream()
        except NotFound:
            if not self.control.session:
                raise
            self.control.renew()  # the session was deleted elsewhere; without a model this is refused too
            return self._stream()

    def _stream(self) -> Stream:
        return self.client.stream(self._prompt(), session=self.control.session, model=self.info.id, **self.sampling)

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
