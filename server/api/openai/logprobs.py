"""Log-probabilities in OpenAI's two shapes. Each object follows one choice from its first token on.

A part of a character is written as OpenAI writes it: its bytes escaped, `\\xf0\\x9f`, so that no two read alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ....protos.model import Token, TokenLogprob

__all__ = ["ChatLogprobs", "TextLogprobs"]


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

    def __init__(self) -> None:
        self._offset = 0

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The lists of the choice's next tokens."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = _text(_sampled(token), "bytes:")
            # Likeliest first, so where two tokens read alike the likelier one stays.
            top = {_text(t, "bytes:"): t.logprob for t in reversed(token.top)}
            found["tokens"].append(text)
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append({**top, text: token.logprob})
            found["text_offset"].append(self._offset)
            self._offset += len(token.text)
        return found
