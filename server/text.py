"""Sampled tokens as text: whole characters only, and nothing that a stop string may still claim."""

from __future__ import annotations

from ..backends.tokenizer import StreamDecoder, Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """The text of one generation as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        """Text that might be the beginning of a stop string."""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that became final with this token. Sets `stopped` once a stop string is complete; it is cut off."""
        return self._release(self._decoder.add(token))

    def flush(self) -> str:
        """What was held back, when the generation ends without a stop string."""
        text = self._release(self._decoder.flush())
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        self._held += text
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
