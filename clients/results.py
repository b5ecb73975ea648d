"""What a request gave: tokens and arrays for each of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..protos.assemble import assemble
from ..protos.errors import Internal, InvalidArgument
from ..protos.metrics import Measured
from ..protos.model import Event, Finished, Revised, Started, StoredCapture, TensorFrame, Timings, Token, Usage
from ..protos.tensors import Array
from .captures import Captures, parted
from .summary import html_table, summary_rows, text_table

__all__ = ["Generation", "Gradients", "InputResult", "Result", "Run", "collect"]


@dataclass(frozen=True, slots=True, eq=False)
class InputResult:
    """One input of a request."""

    name: str
    prompt_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    """Each prompt token as text."""
    new: tuple[Token, ...]
    """Sampled tokens; empty for a run."""
    finished: Finished | None
    """None for an input that was only a source of patches."""
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
    def tokens_per_s(self) -> float:
        """New tokens a second, as the worker measured it; 0 where it did not."""
        if self.finished is None or not self.finished.timings.total_s:
            return 0.0
        return len(self.new) / self.finished.timings.total_s

    def __getitem__(self, site: str) -> Array:
        """As `captures[site]`."""
        return self.captures[site]

    def positions(self, site: str) -> tuple[int, ...]:
        """As `captures.positions(site)`."""
        return self.captures.positions(site)

    def stack(self, name: str) -> Array:
        """As `captures.stack(name)`."""
        return self.captures.stack(name)

    def hook(self, key: str | int) -> Captures:
        """As `captures.hook(key)`."""
        return self.captures.hook(key)

    def revision(self, number: int) -> Captures:
        """As `captures.revision(number)`."""
        return self.captures.revision(number)


class Result:
    """A finished request. With one input, its arrays are reached directly: `result["resid_post.10"]`, [pos, d_model].

    With several, through `result.inputs[name]`.
    """

    def __init__(self, started: Started, inputs: dict[str, InputResult]) -> None:
        self.started = started
        """Model, backend, dtype, library versions, and every hook as the worker understood it."""
        self.inputs = inputs
        """By name, in the order of the request."""

    @property
    def only(self) -> InputResult:
        """The one input. Raises InvalidArgument when there are several."""
        if len(self.inputs) != 1:
            names = ", ".join(self.inputs)
            first = next(iter(self.inputs), "input")
            raise InvalidArgument(f"the request has the inputs {names}; name one: result.inputs[{first!r}]")
        return next(iter(self.inputs.values()))

    @property
    def captures(self) -> Captures:
        """The one input's captures."""
        return self.only.captures

    @property
    def sites(self) -> tuple[str, ...]:
        """The one input's captured sites."""
        return self.only.captures.sites

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The one input's token ids, prompt and generated; index = position."""
        return self.only.token_ids

    @property
    def tokens(self) -> tuple[str, ...]:
        """The one input's tokens as text; index = position."""
        return self.only.tokens

    @property
    def usage(self) -> Usage:
        """Token counts of all inputs together."""
        found = [item.finished.usage for item in self.inputs.values() if item.finished is not None]
        return Usage(sum(u.prompt_tokens for u in found), sum(u.completion_tokens for u in found))

    @property
    def timings(self) -> Timings | None:
        """The one input's timings, measured in the worker."""
        return self.only.finished.timings if self.only.finished is not None else None

    @property
    def stored(self) -> tuple[StoredCapture, ...]:
        """Captures kept on the server, of all inputs."""
        return tuple(capture for item in self.inputs.values() for capture in item.stored)

    def __getitem__(self, site: str) -> Array:
        """The one input's rows at a site: [pos, …the site's own axes], read-only."""
        return self.only.captures[site]

    def positions(self, site: str) -> tuple[int, ...]:
        """Absolute position of each row."""
        return self.only.captures.positions(site)

    def stack(self, name: str) -> Array:
        """[layer, pos, …] over the captured layers of a kind of site."""
        return self.only.captures.stack(name)

    def hook(self, key: str | int) -> Captures:
        """What one hook read, by its id or its index."""
        return self.only.captures.hook(key)

    def revision(self, number: int) -> Captures:
        """What the hooks read that are what they are since a revision of the session."""
        return self.only.captures.revision(number)

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, dtypes kept; `load` reads it back."""
        from .archive import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises InvalidArgument when the file holds another kind of result."""
        from .archive import load

        found = load(path)
        if not isinstance(found, cls):
            raise InvalidArgument(f"{path} holds a {type(found).__name__}, not a {cls.__name__}")
        return found

    def __contains__(self, site: object) -> bool:
        return any(site in item.captures for item in self.inputs.values())

    def __repr__(self) -> str:
        return text_table(type(self).__name__, self._rows())

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return summary_rows(self.started, list(self.inputs.values()))


class Run(Result):
    """One forward pass over each input."""


class Generation(Result):
    """A continuation of each input."""

    @property
    def text(self) -> str:
        """What was generated from the one input."""
        return self.only.text

    @property
    def logprobs(self) -> NDArray[np.float64] | None:
        """[new token] of the one input; None where `logprobs` was not asked for."""
        return self.only.logprobs

    @property
    def finish_reason(self) -> str:
        """stop, eos or length."""
        return self.only.finished.reason if self.only.finished is not None else ""

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second of the one input."""
        return self.only.tokens_per_s


class Gradients(Result):
    """The gradient of a metric at sites of each input: `gradients["mlp_act.3"]`, [pos, d_mlp]; values in `captures`."""

    @property
    def metric(self) -> float:
        """What the gradient was taken of, on the one input."""
        return self.only.metric

    @property
    def gradients(self) -> Captures:
        """The one input's gradients."""
        return self.only.gradients


def collect(
    events: Iterable[Event], expected: Iterable[str], on_token: Callable[[Token], None] | None = None
) -> tuple[Started, dict[str, InputResult]]:
    """All events of a request, joined by input. Raises Internal when one of the `expected` inputs did not finish."""
    started: Started | None = None
    tokens: dict[str, list[Token]] = {}
    frames: dict[str, list[TensorFrame]] = {}
    finished: dict[str, Finished] = {}
    revisions: dict[str, list[Revised]] = {}
    measured: dict[str, tuple[float, ...]] = {}
    for event in events:
        if isinstance(event, Started):
            started = event
        elif isinstance(event, Revised):
            revisions.setdefault(event.input, []).append(event)
        elif isinstance(event, Finished):
            finished[event.input] = event
        elif isinstance(event, Measured):
            measured[event.input] = tuple(event.values.numpy()[:, 0].tolist())
        elif isinstance(event, TensorFrame):
            frames.setdefault(event.input, []).append(event)
        else:
            tokens.setdefault(event.input, []).append(event)
            if on_token is not None:
                on_token(event)
    if started is None:
        raise Internal("the answer ended before it began")
    for name in expected:
        if name not in finished:
            raise Internal(f"the answer ended before input {name!r} did")
    arrays = {begun.name: parted(assemble(frames.get(begun.name, ())).values()) for begun in started.inputs}
    inputs = {
        begun.name: InputResult(
            begun.name,
            begun.token_ids,
            begun.tokens,
            tuple(tokens.get(begun.name, ())),
            finished.get(begun.name),
            arrays[begun.name][0],
            begun.seed,
            tuple(revisions.get(begun.name, ())),
            arrays[begun.name][1],
            measured.get(begun.name, ()),
        )
        for begun in started.inputs
    }
    return started, inputs
