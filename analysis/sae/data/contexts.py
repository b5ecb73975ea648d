"""Documents cut into the sequences that a model reads, each token traceable to its document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import FailedPrecondition, InvalidArgument
from .corpus import Corpus, DocumentHash

__all__ = ["Context", "Contexts", "Cursor"]

Ints = NDArray[np.int32]

SHORTEST = 2
"""Tokens: a context of one token holds nothing but its first position."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a corpus where a context begins."""

    document: int = 0
    """Index in the corpus."""
    offset: int = 0
    """Token of that document."""
    documents_hash: str = ""
    """DocumentHash of all documents before it; empty at the very start."""

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """One sequence, as the model reads it."""

    token_ids: Ints
    """[pos]."""
    documents: Ints
    """[pos]: index of each token's document in the corpus."""
    offsets: Ints
    """[pos]: which token of its document each is, special tokens counted."""
    start: Cursor
    read: Cursor
    """How far the corpus was read for it: to the beginning of the document after its last one."""


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """A corpus as sequences of at most `length` tokens.

    Each document is tokenised whole, as a request would be, so its special tokens (a BOS, say) come once, at its start.
    Cut (the default): a document becomes successive pieces of `length` tokens and a shorter last one, which is left out
    when it has but one token; no piece reaches into another document. Packed: the documents' tokens in a row, nothing
    between them but their own special tokens, cut every `length` tokens; the very last piece may be shorter.
    """

    client: Client
    corpus: Corpus
    length: int
    pack: bool = False
    model: str = ""

    def __post_init__(self) -> None:
        limit = self.client.describe(self.model).context_length
        if type(self.length) is not int or self.length < SHORTEST or (limit and self.length > limit):
            raise InvalidArgument(
                f"context is {SHORTEST} … {limit or 'any number of'} tokens here, got {self.length!r}"
            )

    @property
    def description(self) -> dict[str, Any]:
        """JSON-able."""
        return {"context": self.length, "pack": self.pack}

    def read(self, start: Cursor | None = None) -> Iterator[Context]:
        """Every context, in order, from `start` on. Documents before it are read and hashed but not tokenised.

        Raises FailedPrecondition when they are not those that the cursor was made from.
        """
        start = start or Cursor()
        parts: list[_Piece] = []
        held = 0
        for document in self._documents(start):
            at = start.offset if document.number == start.document else 0
            while at < len(document.token_ids):
                stop = min(len(document.token_ids), at + self.length - held)
                parts.append(_Piece(document, at, stop))
                held, at = held + stop - at, stop
                if held == self.length:
                    yield _joined(parts)
                    parts, held = [], 0
            if not self.pack:
                if held >= SHORTEST:
                    yield _joined(parts)
                parts, held = [], 0
        if held >= SHORTEST:
            yield _joined(parts)

    def goes_on_after(self, read: Cursor) -> bool:
        """Whether the corpus has more sequences after the documents that were read before.

        Raises FailedPrecondition when it does not begin with these.
        """
        digest, number = DocumentHash(), 0
        for number, document in enumerate(self.corpus):
            if number >= read.document:
                _require_same(number, digest, read)
                if len(self.client.tokenize(document.text, model=self.model).token_ids) >= SHORTEST:
                    return True
            digest.update(document.text)
        if number + 1 <= read.document:
            _require_same(number + 1, digest, read)
        return False

    def _documents(self, start: Cursor) -> Iterator[_Tokenized]:
        """From the cursor's document on."""
        digest, number = DocumentHash(), 0
        for number, document in enumerate(self.corpus):
            before = digest.hexdigest()
            digest.update(document.text)
            if number >= start.document:
                if number == start.document and start.documents_hash:
                    _require_same_hash(number, before, start)
                found = self.client.tokenize(document.text, model=self.model).token_ids
                yield _Tokenized(number, before, digest.hexdigest(), np.array(found, dtype=np.int32))
        if number < start.document:
            _require_same(number + 1, digest, start)
            raise FailedPrecondition(
                f"the corpus ends after {number + 1} documents, but one more was begun before; resume with the same corpus"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Tokenized:
    number: int
    before: str
    """Hash of the documents before this one."""
    after: str
    """The same with this one."""
    token_ids: Ints


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Tokens [start, stop) of a document."""

    document: _Tokenized
    start: int
    stop: int


def _joined(parts: list[_Piece]) -> Context:
    first, last = parts[0], parts[-1].document
    return Context(
        np.concatenate([part.document.token_ids[part.start : part.stop] for part in parts]),
        np.concatenate([np.full(part.stop - part.start, part.document.number, dtype=np.int32) for part in parts]),
        np.concatenate([np.arange(part.start, part.stop, dtype=np.int32) for part in parts]),
        Cursor(first.document.number, first.start, first.document.before),
        Cursor(last.number + 1, 0, last.after),
    )


def _require_same(number: int, digest: DocumentHash, then: Cursor) -> None:
    if number < then.document:
        raise FailedPrecondition(
            f"the corpus ends after {number} documents, but {then.document} were read before; resume with the same "
            "corpus, or begin anew in another folder"
        )
    if number == then.document:
        _require_same_hash(number, digest.hexdigest(), then)


def _require_same_hash(number: int, found: str, then: Cursor) -> None:
    if found != then.documents_hash:
        raise FailedPrecondition(
            f"the first {number} documents of the corpus are not those that were read before (hash {found[:12]}…, then "
            f"{then.documents_hash[:12]}…); resume with the same corpus, or begin anew in another folder"
        )
