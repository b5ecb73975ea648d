"""A text as the one token that it is."""

from __future__ import annotations

from ...protos.errors import InvalidArgument
from ...protos.model import Input, Tokenized, TokenizeRequest
from ...protos.service import Service
from .steps import Steps, ask

__all__ = ["one_token"]


def one_token(text: str, model: str) -> Steps[int]:
    """The id of the one token that a text is behind other text. Raises InvalidArgument when it is several, or none."""
    found = yield from _tokenized(text, model)
    plain = [(i, t) for i, t in zip(found.token_ids, found.tokens, strict=True) if t == text]
    ids = [i for i, t in zip(found.token_ids, found.tokens, strict=True) if t and t in text]
    if len(plain) == 1 and len(ids) == 1:
        return plain[0][0]
    # Some tokenizers put a space before every text: behind a line break there is none but the text's own.
    before, whole = (yield from _tokenized("\n", model)), (yield from _tokenized("\n" + text, model))
    if whole.token_ids[:-1] == before.token_ids and whole.tokens[-1] == text:
        return whole.token_ids[-1]
    raise InvalidArgument(
        f"{text!r} is {len(found.token_ids)} tokens for this model ({', '.join(map(repr, found.tokens))}), not one; "
        f"a leading space often matters: {' ' + text.strip()!r}"
    )


def _tokenized(text: str, model: str) -> Steps[Tokenized]:
    return ask(Service.tokenize, TokenizeRequest(Input(text=text), model))
