"""What a kind of tokenizer must do: text to ids, and the bytes that each id stands for."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Codec"]


class Codec(Protocol):
    """One checkpoint's tokenizer, without the bookkeeping of requests."""

    @property
    def chat(self) -> Any:
        """transformers' tokenizer of the same files, for its chat template and named tokens alone."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Special tokens that go before a text: the beginning of text, for most."""
        ...

    @property
    def suffix(self) -> tuple[int, ...]:
        """Special tokens that go after a text."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: control tokens and the like."""
        ...

    @property
    def added_ids(self) -> frozenset[int]:
        """Ids that are found in a text before anything else is: the special ones, and others."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The beginning of text, if there is one."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The end of text, if there is one."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens in it read as such, none put around it."""
        ...

    def raw(self, token: int) -> bytes:
        """The bytes that a token adds to a text that has begun; of half a character, its half. Empty for no token."""
        ...

    def opening(self, token: int) -> bytes:
        """The same where the text begins with it: some tokenizers put a space before every text and take it off again."""
        ...

    def least_tokens(self, text: str) -> int:
        """A number of tokens that the text cannot be below, in a fraction of the time that they take."""
        ...
