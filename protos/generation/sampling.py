"""How the next token is chosen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import InvalidArgument
from ..numbers import within

__all__ = ["Grammar", "Sampling", "TokenBias"]

GrammarKind = Literal["json_schema", "regex", "lark"]

MAX_GRAMMAR_CHARS = 1 << 16
MAX_BIASES = 1024


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a generated text must follow from its first letter to its last; it ends where the grammar does."""

    kind: GrammarKind
    """json_schema: a JSON schema, as text; regex: a regular expression (Rust's) of the whole text; lark: a context-free
    grammar in llguidance's form of Lark's notation."""
    text: str

    def __post_init__(self) -> None:
        if self.kind not in (kinds := get_args(GrammarKind)):
            raise InvalidArgument(f"grammar.kind must be one of {', '.join(kinds)}, got {self.kind!r}")
        if not self.text or len(self.text) > MAX_GRAMMAR_CHARS:
            raise InvalidArgument(
                f"grammar.text takes 1 to {MAX_GRAMMAR_CHARS:,} characters, got {len(self.text):,}; send a smaller one"
            )


@dataclass(frozen=True, slots=True)
class TokenBias:
    """A number that is added to one token's logit."""

    token: int
    bias: float

    def __post_init__(self) -> None:
        within(self.token, 0, 1 << 31, "sampling.logit_bias token", integer=True)
        within(self.bias, -100.0, 100.0, f"sampling.logit_bias of token {self.token}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: Gumbel-max over float32 logits, noise keyed by (seed, token index).

    What changes the logits applies in this order: repetition penalty, frequency and presence penalty, biases, grammar;
    then temperature, top-k, top-p. Hooks at `logits` come before all of it, and captures and log-probabilities tell the
    model's own logits, as the hooks left them.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    seed: int | None = None
    """None: the server draws one and reports it. Input i of a request samples with seed + i (modulo 2**63)."""
    stop: tuple[str, ...] = ()
    """Text that ends the generation; it is not part of the text returned. Special tokens may be named in it."""
    logprobs: int | None = None
    """None: off. n: the sampled token's log-probability and those of the n likeliest (0 … 20)."""
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    """Taken from the logit of every token generated so far (−2 … 2)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as often as it was generated so far (−2 … 2)."""
    repetition_penalty: float = 1.0
    """What divides positive logits, and multiplies negative ones, of tokens of the prompt and those generated; 1: off."""
    logit_bias: tuple[TokenBias, ...] = ()
    grammar: Grammar | None = None
    """What the text must follow. Needs llguidance (`pip install 'probewire[grammar]'`) on the server."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "logit_bias", tuple(self.logit_bias))
        within(self.max_new_tokens, 1, 1 << 20, "sampling.max_new_tokens", integer=True)
        within(self.temperature, 0.0, 100.0, "sampling.temperature")
        within(self.top_p, 0.0, 1.0, "sampling.top_p")
        if self.top_p == 0.0:
            raise InvalidArgument("sampling.top_p must be above 0; for greedy decoding set temperature to 0")
        within(self.top_k, 0, 1 << 20, "sampling.top_k", integer=True)
        if self.seed is not None:
            within(self.seed, 0, (1 << 63) - 1, "sampling.seed", integer=True)
        if self.logprobs is not None:
            within(self.logprobs, 0, 20, "sampling.logprobs", integer=True)
        if len(self.stop) > 16 or any(not isinstance(s, str) or not s or len(s) > 1024 for s in self.stop):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
            raise InvalidArgument("sampling.stop takes at most 16 non-empty strings of at most 1,024 characters")
        within(self.presence_penalty, -2.0, 2.0, "sampling.presence_penalty")
        within(self.frequency_penalty, -2.0, 2.0, "sampling.frequency_penalty")
        within(self.repetition_penalty, 0.01, 100.0, "sampling.repetition_penalty")
        self._check_biases()
        if self.grammar is not None and self.ignore_eos:
            raise InvalidArgument("sampling.ignore_eos goes on past the end that sampling.grammar sets; leave out one")

    def _check_biases(self) -> None:
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidArgument(
                f"sampling.logit_bias takes at most {MAX_BIASES:,} tokens, got {len(self.logit_bias):,}"
            )
        named = Counter(bias.token for bias in self.logit_bias)
        if twice := [token for token, n in named.items() if n > 1]:
            raise InvalidArgument(f"sampling.logit_bias names token {twice[0]} twice; give one bias a token")

    @property
    def adjusts(self) -> bool:
        """Whether anything but temperature, top-k and top-p changes what the logits say."""
        penalised = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        return bool(penalised or self.logit_bias or self.grammar)
