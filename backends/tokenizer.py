"""Text to tokens and back, the same for both backends: the checkpoint's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ..protos.errors import InvalidArgument
from ..protos.model import Input

__all__ = ["StreamDecoder", "Tokenizer"]


class Tokenizer:
    """A thin cover of transformers' fast tokenizers. Special tokens are added once."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        from transformers import AutoTokenizer

        tokenizers: Any = AutoTokenizer  # its methods are not annotated
        self._tokenizer: Any = tokenizers.from_pretrained(folder, trust_remote_code=False)
        self.vocab_size = vocab_size
        self.eos_ids = _eos_ids(folder, self._tokenizer)
        """Tokens that end a generation."""
        self.has_chat_template = bool(self._tokenizer.chat_template)

    def encode(self, item: Input) -> list[int]:
        """Token ids of an input. Raises InvalidArgument for an empty prompt or ids outside the vocabulary."""
        if item.token_ids is not None:
            ids = [int(i) for i in item.token_ids]
        elif item.messages is not None:
            ids = self._encode_messages(item)
        else:
            ids = list(self._tokenizer(item.text)["input_ids"])
        if not ids or item.text == "":  # a tokenizer may put a beginning-of-text token before nothing
            raise InvalidArgument(f"input {item.name!r} has no tokens; send a prompt of at least one token")
        if max(ids) >= self.vocab_size:
            raise InvalidArgument(
                f"input {item.name!r} has token id {max(ids)}; the vocabulary is 0 … {self.vocab_size - 1}"
            )
        return ids

    def _encode_messages(self, item: Input) -> list[int]:
        if not self.has_chat_template:
            raise InvalidArgument(f"input {item.name!r}: this model has no chat template; send text or token_ids")
        messages = [{"role": m.role, "content": m.content} for m in item.messages or ()]
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
            raise InvalidArgument(f"input {item.name!r}: the chat template refused the messages: {error}") from None
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])  # the template wrote them

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def tokens(self, ids: list[int]) -> list[str]:
        """Each token as text, on its own."""
        return [self.decode([i]) for i in ids]

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not text."""
        return frozenset(self._tokenizer.all_special_ids)


def _eos_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """From the generation config, else the model's config, else the tokenizer."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        if found is not None:
            return frozenset(cast("list[int]", found) if isinstance(found, list) else [found])
    return frozenset(() if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])


class StreamDecoder:
    """Turns a growing list of tokens into text that never changes once given out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        self._ids: list[int] = []
        self._start = 0
        """First token of the window that is decoded again, so that merges and spaces come out right."""
        self._given = 0
        """Tokens whose text has been given out."""

    def add(self, token: int) -> str:
        """Text that became final with this token; empty while a character is incomplete. Special tokens give none."""
        if token in self._special:
            return ""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._given])
        now = self._tokenizer.decode(self._ids[self._start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """What is left at the end, incomplete characters as replacement marks."""
        before = self._tokenizer.decode(self._ids[self._start : self._given])
        now = self._tokenizer.decode(self._ids[self._start :])
        self._given = len(self._ids)
        return now[len(before) :]
