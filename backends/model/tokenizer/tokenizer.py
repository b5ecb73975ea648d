"""A checkpoint's tokenizer as the server uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ....protos.errors import InvalidArgument
from ....protos.generation.messages import ToolFormat
from ....protos.model import Input, ModelInfo, TokenizerInfo
from ....protos.tokens import EndToken
from ...sampling.grammars import Grammars
from .chat import rendered, takes_parts
from .codec import Codec
from .ends import end_ids
from .files import read_codec
from .tool_format import tool_format

__all__ = ["Tokenizer"]


class Tokenizer:
    """Inputs to ids, and ids to the text that the model wrote. Special tokens are added once."""

    def __init__(self, folder: Path, vocab_size: int, codec: Codec | None = None) -> None:
        """`codec`: what `read_codec` made of the folder before, if it was read.

        Raises InvalidArgument where the files hold no tokenizer that we can follow exactly.
        """
        self.codec: Codec = codec or read_codec(folder)
        self.vocab_size = vocab_size
        self.end_ids = end_ids(folder, self.codec, vocab_size)
        """Tokens that end a generation, in order."""
        self.hidden_ids = self.codec.special_ids | (frozenset(self.end_ids) & self.codec.added_ids)
        """Tokens that are left out of a generation's text."""
        self.has_chat_template = bool(self.codec.chat.chat_template)
        self._parts = takes_parts(self.codec.chat)
        self.token = cache(self._token)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the chat template writes calls of tools."""
        ends = [self.token(i) for i in self.end_ids]
        return tool_format(self.codec, parts=self._parts, ends=ends, hidden=self.hidden_ids)

    @cached_property
    def grammars(self) -> Grammars:
        """What compiles grammars over its tokens."""
        return Grammars(
            self.raw,
            self.codec.encode,
            vocab_size=self.vocab_size,
            end_ids=self.end_ids,
            hidden_ids=self.hidden_ids,
        )

    def encode(self, item: Input, *, at_most: int = 0, why: str = "", special: bool = True) -> list[int]:
        """Token ids of an input; `at_most` 0: any number, `why` says why not more. `special`: tokens around a text.

        Raises InvalidArgument for an empty prompt, ids outside the vocabulary, or more than `at_most` tokens.
        """
        if item.token_ids is not None:
            ids = [int(i) for i in item.token_ids]
        elif item.messages is not None:
            ids = self._ids(item, self._render(item), at_most)  # the template wrote the special tokens
        else:
            ids = self._ids(item, item.text or "", at_most)
            ids = self._wrap(ids) if ids and special else ids
        if not ids:
            raise InvalidArgument(f"input {item.name!r} has no tokens; send a prompt of at least one token")
        if at_most and len(ids) > at_most:
            raise InvalidArgument(f"input {item.name!r} has {len(ids)} tokens; at most {at_most} are allowed{why}")
        if max(ids) >= self.vocab_size:
            raise InvalidArgument(
                f"input {item.name!r} has token id {max(ids)}; the vocabulary is 0 … {self.vocab_size - 1}"
            )
        return ids

    def _ids(self, item: Input, text: str, at_most: int) -> list[int]:
        """Ids of a text that does not show by its length alone that it is too long: long ones take seconds."""
        if at_most and len(text) > at_most and (least := self.codec.least_tokens(text)) > at_most:
            raise InvalidArgument(
                f"input {item.name!r} has {len(text):,} characters, which are {least:,} tokens or more; "
                f"at most {at_most:,} are allowed"
            )
        return self.codec.encode(text)

    def _wrap(self, ids: list[int]) -> list[int]:
        """Special tokens around a text, but for those that it has already: a rendered template begins with its own."""
        prefix, suffix = list(self.codec.prefix), list(self.codec.suffix)
        before = [] if ids[: len(prefix)] == prefix else prefix
        return [*before, *ids, *([] if suffix and ids[-len(suffix) :] == suffix else suffix)]

    def _render(self, item: Input) -> str:
        if not self.has_chat_template:
            raise InvalidArgument(f"input {item.name!r}: this model has no chat template; send text or token_ids")
        messages, tells = item.messages or (), bool(item.tools) or any(m.tool_calls for m in item.messages or ())
        if tells and self.tool_format is None:
            raise InvalidArgument(
                f"input {item.name!r}: this model's chat template reads no tools, or writes calls of them in another form than "
                "JSON, so it would not be told of them; describe them in a message and ask for a form (sampling.grammar, "
                "response_format), or serve a model whose template reads tools"
            )
        try:
            return rendered(
                self.codec.chat,
                messages,
                parts=self._parts,
                reply=not item.continue_final,
                goes_on=item.continue_final,
                tools=item.tools,
            )
        except Exception as error:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
            raise InvalidArgument(f"input {item.name!r}: the chat template refused the messages: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones included; what is no character is a replacement mark."""
        return b"".join([*map(self.codec.opening, ids[:1]), *map(self.raw, ids[1:])]).decode(errors="replace")

    def raw(self, token: int) -> bytes:
        """The bytes that a token adds to a text that has begun; of half a character, its half."""
        return self.codec.raw(token)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Each token's own text, as it stands behind others."""
        return [self.token(i) for i in ids]

    def _token(self, token: int) -> str:
        return self.raw(token).decode(errors="replace")

    def text_bytes(self, token: int) -> bytes:
        """The bytes that a sampled token adds to the text given out; none for what is left out of it."""
        return b"" if token in self.hidden_ids else self.raw(token)

    def described(self, info: ModelInfo) -> ModelInfo:
        """A model's description with what its tokenizer adds to it."""
        ends = tuple(EndToken(i, self.token(i)) for i in self.end_ids)
        return replace(info, chat_template=self.has_chat_template, ends=ends)

    def named(self) -> TokenizerInfo:
        """What the checkpoint's files call its special tokens, and the chat template."""
        chat = self.codec.chat
        tokens: list[Any] = [getattr(chat, name, None) for name in ("bos_token", "eos_token", "pad_token")]
        bos, eos, pad = (None if token is None else str(token) for token in tokens)
        template = chat.chat_template if isinstance(chat.chat_template, str) else None
        return TokenizerInfo(bos, eos, pad, template, self.tool_format)

    @property
    def hidden_texts(self) -> frozenset[str]:
        """What the tokens that a text leaves out are written as."""
        return frozenset(filter(None, (self.token(i).strip() for i in self.hidden_ids)))
