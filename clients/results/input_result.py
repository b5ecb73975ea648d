"""What a request gave for one of its inputs: tokens and arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.model import Finished, Revised, StoredCapture, Timings, Token
from ...protos.tensors import Array
from .captures import BySite, Captures
from .site_rows import site_rows
from .tables import text_table

__all__ = ["InputResult", "input_rows"]

MAX_TEXT_CHARS = 300


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InputResult(BySite):
    """One input of a request."""

    name: str
    prompt_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    """Each prompt token as text."""
    new: tuple[Token, ...]
    """Sampled tokens; empty for a run."""
    finished: Finished | None
    """None for an input that was only a source of patches, or that had not ended yet."""
    captures: Captures
    seed: int = 0
    revisions: tuple[Revised, ...] = ()
    """Changes of its session while it ran, in order, each with the hooks from then on. Tokens name theirs."""
    gradients: Captures = Captures()
    measured: tuple[float, ...] = ()
    """Gradients: the metric; along a path, at each of its points."""

    @property
    def metric(self) -> float:
        """What the gradient was taken of. Raises InvalidArgument for a path, which has a value at each point."""
        if len(self.measured) != 1:
            raise InvalidArgument(f"input {self.name!r} was measured {len(self.measured)} times; read `measured`")
        return self.measured[0]

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(token.text for token in self.new)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt and generated tokens; index = position."""
        return (*self.prompt_ids, *(token.id for token in self.new))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Text of each token, prompt and generated; index = position."""
        return (*self.prompt_tokens, *(token.text for token in self.new))

    @property
    def logprobs(self) -> NDArray[np.float64] | None:
        """[new token]: natural log, of the edited, untempered distribution; None where `logprobs` was not asked for."""
        values = [token.logprob for token in self.new if token.logprob is not None]
        return np.array(values) if values and len(values) == len(self.new) else None

    @property
    def stored(self) -> tuple[StoredCapture, ...]:
        """Captures that were kept on the server."""
        return self.finished.stored if self.finished is not None else ()

    @property
    def timings(self) -> Timings | None:
        """Seconds, measured in the worker; None for an input that only others read."""
        return self.finished.timings if self.finished is not None else None

    @property
    def finish_reason(self) -> str:
        """stop, eos, length, or run; empty for an input that has not ended."""
        return self.finished.reason if self.finished is not None else ""

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second, as the worker measured it; 0 where it did not."""
        if self.finished is None or not self.finished.timings.total_s:
            return 0.0
        return len(self.new) / self.finished.timings.total_s

    @property
    def last_position(self) -> int:
        """Of the last token that the model read: the prompt's last, or the last but one of a generation."""
        return len(self.prompt_ids) - 1 + max(len(self.new) - 1, 0)

    def stack(self, name: str) -> Array:
        """As `captures.stack(name)`."""
        return self.captures.stack(name)

    def last(self, name: str) -> Array:
        """As `captures.last(name)`, of the last token that the model read. Raises NotFound when that was not captured."""
        return self.captures.last(name, self.last_position)

    def hook(self, key: str | int) -> Captures:
        """As `captures.hook(key)`."""
        return self.captures.hook(key)

    def revision(self, number: int) -> Captures:
        """As `captures.revision(number)`."""
        return self.captures.revision(number)

    def __repr__(self) -> str:
        return text_table(f"InputResult {self.name!r}", input_rows(self))


def input_rows(item: InputResult, unnamed: frozenset[int] = frozenset()) -> list[tuple[str, str]]:
    """The lines of one input; `unnamed`: hooks whose captures have other axes than their sites."""
    rows = [("prompt", f"{len(item.prompt_ids)} tokens  {_clipped(''.join(item.prompt_tokens))}")]
    if item.new:
        rows.append(("text", _clipped(item.text)))
        reason = f", ended by {item.finished.reason}" if item.finished is not None else ", not ended"
        speed = f", {item.tokens_per_s:.1f} tokens/s" if item.tokens_per_s else ""
        rows.append(("new", f"{len(item.new)} tokens{reason}{speed}"))
    if item.revisions:
        turns = ", ".join(
            f"{revised.revision} from token {_first(item, revised.revision)}" for revised in item.revisions
        )
        rows.append(("session", f"revision {turns}"))
    if item.measured:
        rows.append(("metric", ", ".join(f"{value:.6g}" for value in item.measured)))
    rows += [(f"∂ {label}", value) for label, value in site_rows(item.gradients, unnamed)]
    rows += site_rows(item.captures, unnamed)
    return rows + [("stored", f"{kept.id}  {kept.site} {list(kept.shape)} {kept.dtype}") for kept in item.stored]


def _first(item: InputResult, revision: int) -> int:
    """Index of the first new token that was sampled under a revision."""
    return next((token.index for token in item.new if token.revision >= revision), len(item.new))


def _clipped(text: str) -> str:
    return repr(text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…")
