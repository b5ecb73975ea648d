"""Sampled tokens as text that never changes once it is given out."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

__all__ = ["StreamDecoder"]

_LONGEST_CHARACTER_BYTES = 4


class StreamDecoder:
    """What is given out for all tokens, joined, is what they add to the text of the prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(_last_bytes(tokenizer, prompt))  # a character that the prompt begins ends here

    def add(self, token: int) -> str:
        """Text that became final with this token; empty while a character is incomplete. Special tokens give none."""
        if token in self._tokenizer.hidden_ids:
            return ""
        return self._decoder.decode(self._tokenizer.raw(token))

    def flush(self) -> str:
        """What is left at the end: a replacement mark for an incomplete character."""
        return self._decoder.decode(b"", final=True)


def _last_bytes(tokenizer: Tokenizer, prompt: Sequence[int]) -> bytes:
    found = b""
    for token in reversed(prompt):
        if len(found) >= _LONGEST_CHARACTER_BYTES:
            break
        found = tokenizer.raw(token) + found
    return found
