"""Sampled tokens as text: whole characters only, and nothing that a stop string may still claim."""

from __future__ import annotations

from collections.abc import Sequence

from ....backends.model.tokenizer import StreamDecoder, Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """The text of one generation as it grows."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], prompt: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, prompt)
        self._tokenizer = tokenizer
        special = tokenizer.hidden_texts if stop else ()
        self._naming = tuple(s for s in stop if any(text in s for text in special))
        """Stop strings that name special tokens, which are looked for among all tokens; the rest in the text alone."""
        self._plain = tuple(s for s in stop if s not in self._naming)
        self._held = ""
        """What might be the beginning of a stop string: text, and special tokens where one names any."""
        self._shown: list[bool] = []
        """Which of its characters are text."""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that became final with this token. Sets `stopped` once a stop string is complete; it is cut off."""
        text = self._decoder.add(token)
        if not self._plain and not self._naming:
            return text
        if self._naming and token in self._tokenizer.hidden_ids:
            self._hold(self._tokenizer.token(token), shown=False)
        self._hold(text, shown=True)
        return self._release()

    def flush(self) -> str:
        """What was held back, when the generation ends without a stop string."""
        self._hold(self._decoder.flush(), shown=True)
        text = self._release()
        return text if self.stopped else text + self._take(len(self._held))

    def _hold(self, text: str, *, shown: bool) -> None:
        self._held += text
        self._shown += [shown] * len(text)

    def _release(self) -> str:
        places = [place for place, shown in enumerate(self._shown) if shown]
        text = "".join(self._held[place] for place in places)
        found = [places[at] for stop in self._plain if (at := text.find(stop)) >= 0]
        found += [at for stop in self._naming if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            released = self._take(min(found))
            self._held, self._shown = "", []
            return released
        keep = [places[len(text) - n] for stop in self._plain if (n := _overlap(text, stop))]
        keep += [len(self._held) - n for stop in self._naming if (n := _overlap(self._held, stop))]
        return self._take(min(keep, default=len(self._held)))

    def _take(self, n: int) -> str:
        """The text among the first characters, which are held no longer."""
        text = "".join(char for char, shown in zip(self._held[:n], self._shown[:n], strict=True) if shown)
        self._held, self._shown = self._held[n:], self._shown[n:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
