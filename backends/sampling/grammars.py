"""Grammars over a model's own tokens, by llguidance: which tokens may come next, as a mask over the vocabulary."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from ...protos.generation.sampling import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["Grammars", "Matcher"]

_KEPT = 16
"""Compiled grammars that are kept for the next request."""
_WHITESPACE = r"( |\n[ \t]{0,16})?"
"""Between the parts of JSON, which allows any: a space, or a line with its indent. A model can lose itself in more."""
_INSTALL = "sampling.grammar (response_format) needs llguidance on the server: pip install 'probewire[grammar]'"


class Matcher:
    """Where one text is in its grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, end_ids: frozenset[int]) -> None:
        self._matcher, self._vocab_size, self._end_ids = matcher, vocab_size, end_ids
        self.ended = False
        """An end token was taken: whatever follows belongs to no text."""

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token may come next: [vocab]. Raises ResourceExhausted where that takes too much work."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").astype(np.bool_)

    def take(self, token: int) -> None:
        """Move on by a token that is allowed."""
        self.ended = token in self._end_ids
        if not self.ended:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ResourceExhausted(
                f"sampling.grammar took too much work: {_brief(self._matcher.get_error())}; simplify it"
            )

    def again(self) -> Matcher:
        """One more, in the same place."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size, self._end_ids)


class Grammars:
    """Compiles grammars for one tokenizer."""

    def __init__(
        self,
        raw: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        *,
        vocab_size: int,
        end_ids: tuple[int, ...],
        hidden_ids: frozenset[int],
    ) -> None:
        """`raw`: the bytes that a token adds to a text; `hidden_ids`: tokens that are no text."""
        self._raw, self._encode, self._vocab_size = raw, encode, vocab_size
        self._end_ids, self._hidden_ids = end_ids, hidden_ids
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, Matcher] = OrderedDict()
        self._lock = Lock()

    def matcher(self, grammar: Grammar) -> Matcher:
        """At the beginning of a text. Raises InvalidArgument for a grammar that says what cannot be followed.

        Raises FailedPrecondition without llguidance, or for a model that knows no end of a text.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is None:
                found = self._compiled[grammar] = self._compile(grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return found.again()

    def _compile(self, grammar: Grammar) -> Matcher:
        try:
            from llguidance import LLMatcher
        except ModuleNotFoundError:
            raise FailedPrecondition(_INSTALL) from None
        if not self._end_ids:
            raise FailedPrecondition(
                "sampling.grammar needs a token that ends a text, and this model's files name none; use stop and max_new_tokens"
            )
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        try:
            form = _forms(grammar)
        except ValueError as error:
            raise InvalidArgument(f"sampling.grammar is no {grammar.kind}: {_brief(str(error))}") from None
        made = LLMatcher(self._tokenizer, form, log_level=0)
        if made.is_error():
            raise InvalidArgument(
                f"sampling.grammar cannot be followed: {_brief(made.get_error())}; a {grammar.kind} without that can"
            )
        return Matcher(made, self._vocab_size, frozenset(self._end_ids))

    def _make_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapper = TokenizerWrapper(
            _Vocabulary(self._raw, self._encode, self._vocab_size, self._end_ids, self._hidden_ids)
        )
        return LLTokenizer(wrapper, n_vocab=self._vocab_size, eos_token=list(self._end_ids))


def _forms(grammar: Grammar) -> Any:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"whitespace_pattern": _WHITESPACE})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    return LLMatcher.grammar_from_lark(grammar.text)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(
        self,
        raw: Callable[[int], bytes],
        encode: Callable[[str], list[int]],
        vocab_size: int,
        end_ids: tuple[int, ...],
        hidden_ids: frozenset[int],
    ) -> None:
        self._encode = encode
        self.tokens = [raw(token) for token in range(vocab_size)]
        self.special_token_ids = sorted(i for i in hidden_ids | set(end_ids) if i < vocab_size)
        self.eos_token_id = end_ids[0]
        self.bos_token_id = None

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text; llguidance tries bytes first."""
        if isinstance(text, bytes):
            raise TypeError("text alone")
        return self._encode(text)


def _brief(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "…"
