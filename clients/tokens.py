"""A text as the one token that it is."""

from __future__ import annotations

from collections.abc import Callable

from ..protos.errors import InvalidArgument
from ..protos.model import Tokenized

__all__ = ["one_token"]


def one_token(text: str, tokenize: Callable[[str], Tokenized]) -> int:
    """The id of the one token that a text is behind other text. Raises InvalidArgument when it is several, or none."""
    found = tokenize(text)
    plain = [(i, t) for i, t in zip(found.token_ids, found.tokens, strict=True) if t == text]
    ids = [i for i, t in zip(found.token_ids, found.tokens, strict=True) if t and t in text]
    if len(plain) == 1 and len(ids) == 1:
        return plain[0][0]
    # Some tokenizers put a space before every text: behind a line break there is none but the text's own.
    before, whole = tokenize("\n"), tokenize("\n" + text)
    if whole.token_ids[:-1] == before.token_ids and whole.tokens[-1] == text:
        return whole.token_ids[-1]
    raise InvalidArgument(
        f"{text!r} is {len(found.token_ids)} tokens for this model ({', '.join(map(repr, found.tokens))}), not one; "
        f"a leading space often matters: {' ' + text.strip()!r}"
    )
