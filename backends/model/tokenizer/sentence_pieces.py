"""A tokenizer that is a sentencepiece model, by sentencepiece itself: conversions of it were seen to split otherwise."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from .length import Lengths

__all__ = ["SentencePieceCodec"]

_MARK = "▁"


class SentencePieceCodec:
    """Ids of a text are sentencepiece's own. Control and added tokens are found in it first, as transformers does."""

    def __init__(self, path: Path, chat: Any) -> None:
        """`chat` is transformers' reading of the files beside it. Raises RuntimeError where the file is no model."""
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

        protobuf: Any = sentencepiece_model_pb2  # generated, not annotated
        self.chat: Any = chat
        self._pieces: Any = SentencePieceProcessor(model_file=str(path))
        model: Any = protobuf.ModelProto.FromString(self._pieces.serialized_model_proto())
        self._opens_with_space = bool(model.normalizer_spec.add_dummy_prefix)
        self._keeps_spaces = not model.normalizer_spec.remove_extra_whitespaces
        self._byte_fallback = bool(model.trainer_spec.byte_fallback)
        model.normalizer_spec.add_dummy_prefix = False
        self._inside: Any = SentencePieceProcessor(model_proto=model.SerializeToString())
        """The same model for text that goes on: no space is put before it."""
        self.n_pieces: int = self._pieces.get_piece_size()
        # transformers' older form ("legacy", its default) puts a space after every special token, the newer does not.
        self._legacy = chat.init_kwargs.get("legacy") is not False
        self._added = self._added_tokens()
        self.added_ids = frozenset(self._added)
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special) | self._unknown()
        self.bos_id = self._named(chat.bos_token, self._pieces.bos_id())
        self.eos_id = self._named(chat.eos_token, self._pieces.eos_id())
        wants_bos, wants_eos = (chat.init_kwargs.get(f"add_{name}_token") for name in ("bos", "eos"))
        self.prefix = () if self.bos_id is None or wants_bos is False else (self.bos_id,)
        self.suffix = () if self.eos_id is None or not wants_eos else (self.eos_id,)
        self._ids = {token.content: i for i, token in self._added.items()}
        self._finder = _finder(self._added.values())

    def _added_tokens(self) -> dict[int, Any]:
        """Those of the config, and the model's own control symbols (<s>, </s>)."""
        from tokenizers import AddedToken

        own = {
            i: AddedToken(self._pieces.id_to_piece(i), special=True, normalized=False)
            for i in range(self.n_pieces)
            if self._pieces.is_control(i)
        }
        return own | dict(self.chat.added_tokens_decoder)

    def _unknown(self) -> frozenset[int]:
        return frozenset(i for i in (self._pieces.unk_id(),) if i >= 0)

    def _named(self, name: str | None, own: int) -> int | None:
        found = next((i for i, token in self._added.items() if name is not None and token.content == name), own)
        return None if found < 0 else found

    def encode(self, text: str) -> list[int]:
        """See Codec."""
        ids: list[int] = []
        parts = [text] if self._finder is None else self._finder.split(text)
        for index, part in enumerate(parts):
            if index % 2:
                forms = (part, part.lstrip(), part.rstrip(), part.strip())  # without the spaces that it swallowed
                ids.append(next(self._ids[form] for form in forms if form in self._ids))
            elif part:
                spaced = index == 0 or self._legacy
                ids += (self._pieces if spaced else self._inside).encode(part)
        return ids

    def raw(self, token: int) -> bytes:
        """See Codec."""
        if (added := self._added.get(token)) is not None:
            return str(added.content).encode()
        if not 0 <= token < self.n_pieces or self._pieces.is_unused(token):
            return b""
        piece: str = self._pieces.id_to_piece(token)
        return bytes([int(piece[3:5], 16)]) if self._pieces.is_byte(token) else piece.replace(_MARK, " ").encode()

    def opening(self, token: int) -> bytes:
        """See Codec."""
        raw = self.raw(token)
        return raw.removeprefix(b" ") if self._opens_with_space and token not in self._added else raw

    def least_tokens(self, text: str) -> int:
        """See Codec."""
        return self._lengths.least_tokens(text)

    @cached_property
    def _lengths(self) -> Lengths:
        contents = [str(token.content) for token in self._added.values()]
        pieces = [self._pieces.id_to_piece(i) for i in range(self.n_pieces)]
        stripping = any(token.lstrip or token.rstrip for token in self._added.values())
        found, keeps = self._byte_fallback, self._keeps_spaces and not stripping  # else unknown characters are one
        return Lengths.of(
            [*pieces, *contents, *map(self._normalize, contents)],
            self._normalize,
            (found, found, found, found and keeps),
        )

    def _normalize(self, text: str) -> str:
        return str(self._inside.normalize(text))


def _finder(added: Any) -> re.Pattern[str] | None:
    """Splits a text into what is between added tokens and, at odd places, the tokens with the spaces they swallow."""
    tokens = sorted(added, key=lambda token: -len(token.content))
    patterns = [
        (r"\s*" if token.lstrip else "") + re.escape(token.content) + (r"\s*" if token.rstrip else "")
        for token in tokens
        if token.content
    ]
    return re.compile(f"({'|'.join(patterns)})") if patterns else None
