"""How few tokens a text can be, without tokenising it: no token holds more than so many letters."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .byte_letters import BYTE_OF

__all__ = ["Lengths", "lengths_of"]

_SPACE = np.array(
    [ord(char) for char in map(chr, range(0x3001)) if char.isspace()] + [ord("▁")],
    dtype=np.uint32,
)
"""Characters that a tokenizer may drop, and the mark that stands for them."""
_BYTES_OF_TEXT = {*range(0xC0), *range(0xC2, 0xF5)}
"""Those that UTF-8 has."""
_KEEPING_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "ByteLevel"}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "UnicodeScripts"}
_DROPPING_SPACE = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}


@dataclass(frozen=True, slots=True)
class Lengths:
    """The most characters of some kinds that one token holds."""

    most: tuple[int, ...]
    """Of each kind (see `_kinds`); 0: nothing can be said of that kind, since the tokenizer may drop or fuse some."""
    normalize: Callable[[str], str]
    """What the tokenizer does to a text before it looks for tokens."""

    @classmethod
    def of(cls, pieces: Iterable[str], normalize: Callable[[str], str], found: Sequence[bool]) -> Lengths:
        """From a vocabulary, and of which kinds every character becomes a token or a part of one."""
        held = [piece for piece in pieces if piece]
        starts = np.cumsum([0, *map(len, held[:-1])])
        kinds = _kinds("".join(held))
        most = [int(np.add.reduceat(kind, starts, dtype=np.int64).max()) for kind in kinds]
        return cls(tuple(n if sure else 0 for n, sure in zip(most, found, strict=True)), normalize)

    def least_tokens(self, text: str) -> int:
        """A number of tokens that the text cannot be below."""
        if not any(self.most):
            return 0
        counts = (int(kind.sum()) for kind in _kinds(self.normalize(text)))
        return max(-(-have // most) for have, most in zip(counts, self.most, strict=True) if most)


def _kinds(text: str) -> tuple[NDArray[np.bool_], ...]:
    """Which characters of a text are letters a … z, digits, anything but spaces, anything."""
    codes: NDArray[np.uint32] = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    small = codes | 32
    letters = (small >= ord("a")) & (small <= ord("z"))
    digits = (codes >= ord("0")) & (codes <= ord("9"))
    return letters, digits, ~np.isin(codes, _SPACE), np.ones(len(codes), dtype=np.bool_)


def lengths_of(backend: Any) -> Lengths:
    """Of a tokenizer of the `tokenizers` library."""
    normalizers = _steps(backend.normalizer, "normalizers")
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    added = list(backend.get_added_tokens_decoder().values())

    def normalize(text: str) -> str:
        return text if all(map(_counts_alike, normalizers)) else str(backend.normalizer.normalize_str(text))

    keeps = all(map(_keeps, normalizers)) and all(step["type"] not in _DROPPING_SPACE for step in pre_tokenizers)
    keeps = keeps and not any(token.lstrip or token.rstrip for token in added)
    letters, digits, others = _found(backend.model, vocabulary, normalizers, pre_tokenizers)
    pieces = [*vocabulary, *(normalize(token.content) for token in added)]
    return Lengths.of(pieces, normalize, (letters, digits, others, others and keeps))


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    state: dict[str, Any] = json.loads(part.__getstate__())
    return _flat(state, inner)


def _flat(state: dict[str, Any], inner: str) -> list[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for part in state[inner] for step in _flat(part, inner)]


def _found(
    model: Any, vocabulary: dict[str, int], normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]
) -> tuple[bool, bool, bool]:
    """Whether every letter a … z, every digit, and every character but spaces is found, and no part of an unknown."""
    if type(model).__name__ not in ("BPE", "Unigram") or any(
        step["type"] not in _KEEPING_PRE_TOKENIZERS | _DROPPING_SPACE or step.get("behavior") == "Removed"
        for step in pre_tokenizers
    ):
        return False, False, False
    if any(step["type"] == "ByteLevel" for step in (*normalizers, *pre_tokenizers)):
        found = all(letter in vocabulary for letter, byte in BYTE_OF.items() if byte in _BYTES_OF_TEXT)
    else:
        found = all(f"<0x{n:02X}>" in vocabulary for n in range(256))
        found = found and bool(json.loads(model.__getstate__())["byte_fallback"])
    return found or vocabulary.keys() >= set(ascii_letters), found or vocabulary.keys() >= set("0123456789"), found


def _counts_alike(step: dict[str, Any]) -> bool:
    """Whether it only marks spaces, which is not worth a copy of a long text."""
    marks = (step.get("pattern"), step.get("content")) == ({"String": " "}, "▁")
    return step["type"] == "Prepend" or (step["type"] == "Replace" and marks)


def _keeps(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return len(step["content"]) >= len(step["pattern"].get("String", step["content"] + " "))
    return step["type"] in _KEEPING_NORMALIZERS
