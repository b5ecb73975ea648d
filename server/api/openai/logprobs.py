"""Log-probabilities in OpenAI's two shapes. Each object follows one choice from its first token on.

A part of a character is written as OpenAI writes it: its bytes escaped, `\\xf0\\x9f`, so that no two read alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ....protos.model import Token, TokenLogprob

__all__ = ["ChatLogprobs", "TextLogprobs", "completion_text", "largest"]


def _sampled(token: Token) -> TokenLogprob:
    """The token's own entry, where the worker told it: `token.text` may wait for a character to be complete."""
    own = TokenLogprob(token.id, token.text, token.logprob or 0.0, token.text.encode())
    return next((top for top in token.top if top.id == token.id), own)


def _text(told: TokenLogprob, partial: str = "") -> str:
    """A token's text; of a part of a character, `partial` and its bytes."""
    try:
        told.raw.decode()
    except UnicodeDecodeError:
        return partial + "".join(f"\\x{byte:02x}" for byte in told.raw)
    return told.text


class ChatLogprobs:
    """`{"content": [{token, logprob, bytes, top_logprobs}]}`, with at most `n_top` of the likeliest tokens."""

    def __init__(self, n_top: int) -> None:
        self._n_top = n_top

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The entry of the choice's next tokens."""
        content = [
            {
                **_entry(_sampled(token), token.logprob),
                "top_logprobs": [_entry(top, top.logprob) for top in token.top[: self._n_top]],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _entry(told: TokenLogprob, logprob: float | None) -> dict[str, Any]:
    """`bytes` of all tokens join to the text; special tokens, which the text leaves out, have none."""
    return {"token": _text(told), "logprob": logprob, "bytes": list(told.raw) or None}


class TextLogprobs:
    """`{"tokens", "token_logprobs", "top_logprobs", "text_offset"}`."""

    def __init__(self, offset: int = 0) -> None:
        """`offset`: characters before the first token."""
        self._offset = offset

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The lists of the choice's next tokens."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = completion_text(_sampled(token))
            found["tokens"].append(text)
            found["token_logprobs"].append(token.logprob)
            own = [] if token.logprob is None else [(text, token.logprob)]
            found["top_logprobs"].append(largest([*((completion_text(t), t.logprob) for t in token.top), *own]))
            found["text_offset"].append(self._offset)
            self._offset += len(token.text)
        return found


def completion_text(told: TokenLogprob) -> str:
    """A token's text as /v1/completions writes it."""
    return _text(told, "bytes:")


def largest(told: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Text → log-probability; of tokens that read alike the likeliest: the lesser one must not look like the best."""
    found: dict[str, float] = {}
    for text, logprob in told:
        found[text] = max(logprob, found.get(text, logprob))
    return found
