"""Values about single tokens."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EndToken", "TokenLogprob"]


@dataclass(frozen=True, slots=True)
class EndToken:
    """A token that ends a generation."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A candidate token with its log-probability (natural log, edited untempered distribution)."""

    id: int
    text: str
    """Its own, as it stands behind others; a part of a character is a replacement mark."""
    logprob: float
    raw: bytes = b""
    """What it adds to the text, in UTF-8; of a part of a character, its part. Empty for special tokens."""
