"""A tokenizer of the `tokenizers` library, as its tokenizer.json says."""

from __future__ import annotations

import re
from functools import cache, cached_property
from typing import Any

from ....protos.errors import InvalidArgument
from .byte_letters import BYTE_OF
from .length import Lengths, lengths_of

__all__ = ["FastCodec"]

_HALF = "\ufffd"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SAMPLE = "The quick brown fox, 12 of them: don't, no no no, zzzzzzz!\n  A tab\tand a ümlaut — 世界."


class FastCodec:
    """What a token stands for is learnt from the library's own decoder: the text that it adds behind another token."""

    def __init__(self, chat: Any) -> None:
        """`chat` is a fast tokenizer of transformers. Raises InvalidArgument for a decoder that we cannot follow."""
        self.chat: Any = chat
        self._backend: Any = chat.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.bos_id: int | None = chat.bos_token_id
        self.eos_id: int | None = chat.eos_token_id
        self._anchor, self._anchor_text = self._choose_anchor()
        self.prefix, self.suffix = self._around()
        self.raw = cache(self._raw)
        self.opening = cache(self._opening)
        self._check_decoder()

    def encode(self, text: str) -> list[int]:
        """See Codec."""
        # Of one text, but without holding up Python's other threads, as `encode` does.
        [found] = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return list(found.ids)

    def least_tokens(self, text: str) -> int:
        """See Codec."""
        return self._lengths.least_tokens(text)

    @cached_property
    def _lengths(self) -> Lengths:
        return lengths_of(self._backend)

    def _decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))

    def _choose_anchor(self) -> tuple[list[int], str]:
        """A token that stands before others while they are decoded, so that none of them is the first."""
        for letter in "aeiotnA0.":
            ids = self.encode(letter)[-1:]
            text = self._decode(ids)
            if text.strip() == text != "" and _HALF not in text:
                return ids, text
        return [], ""

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        text = self._anchor_text or "a"
        own = self.encode(text)
        whole: list[int] = list(self._backend.encode(text, add_special_tokens=True).ids)
        for start in range(len(whole) - len(own) + 1):
            if whole[start : start + len(own)] == own:
                return tuple(whole[:start]), tuple(whole[start + len(own) :])
        raise InvalidArgument(
            "the tokenizer's post-processor changes the tokens of a text; only adding some is supported"
        )

    def _raw(self, token: int) -> bytes:
        text = self._decode([*self._anchor, token]).removeprefix(self._anchor_text)
        return self._halves(token) if _HALF in text else text.encode()

    def _opening(self, token: int) -> bytes:
        text = self._decode([token])
        return self._halves(token) if _HALF in text else text.encode()

    def _halves(self, token: int) -> bytes:
        """The bytes of a token that is not whole characters."""
        piece = str(self._backend.id_to_token(token))
        if found := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(found[1], 16)])
        if token not in self.added_ids and all(char in BYTE_OF for char in piece):
            return bytes(BYTE_OF[char] for char in piece)
        return piece.encode()  # the library takes an added token's accents for bytes

    def _check_decoder(self) -> None:
        """Raise InvalidArgument where the library's text of a sentence is not that of its tokens one by one."""
        ids = self.encode(_SAMPLE)
        theirs = self._decode([*self._anchor, *ids])
        ours = (self._anchor_text.encode() + b"".join(map(self.raw, ids))).decode(errors="replace")
        if ours != theirs:
            raise InvalidArgument(
                f"the tokenizer's decoder ({self._backend.decoder}) writes a token otherwise beside others than alone: "
                f"{theirs!r}, token by token {ours!r}; texts could not be told exactly. Use a tokenizer.json whose "
                "decoder is ByteLevel, Metaspace, WordPiece or a Replace"
            )
