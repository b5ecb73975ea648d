"""Log-probabilities in OpenAI's two shapes. Each object follows one choice from its first token on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..protos.model import Token

__all__ = ["ChatLogprobs", "TextLogprobs"]


def _text(token: Token) -> str:
    """The token's own text, where the worker told it: `token.text` may wait for a character to be complete."""
    return next((top.text for top in token.top if top.id == token.id), token.text)


class ChatLogprobs:
    """`{"content": [{token, logprob, bytes, top_logprobs}]}`, with at most `n_top` of the likeliest tokens."""

    def __init__(self, n_top: int) -> None:
        self._n_top = n_top

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The entry of the choice's next tokens."""
        content = [
            {
                **_entry(_text(token), token.logprob),
                "top_logprobs": [_entry(top.text, top.logprob) for top in token.top[: self._n_top]],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


class TextLogprobs:
    """`{"tokens", "token_logprobs", "top_logprobs", "text_offset"}`."""

    def __init__(self) -> None:
        self._offset = 0

    def of(self, tokens: Iterable[Token]) -> dict[str, Any]:
        """The lists of the choice's next tokens."""
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            text = _text(token)
            # Likeliest first, so where two tokens read alike the likelier one stays.
            top = {t.text: t.logprob for t in reversed(token.top)}
            found["tokens"].append(text)
            found["token_logprobs"].append(token.logprob)
            found["top_logprobs"].append({**top, text: token.logprob})
            found["text_offset"].append(self._offset)
            self._offset += len(token.text)
        return found
