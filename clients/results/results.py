"""What a request gave: tokens and arrays for each of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument, NotFound
from ...protos.model import Started, StoredCapture, Timings, Usage
from ...protos.spec import Plan
from ...protos.tensors import Array
from ..requests.asked import Asked
from .archive import Saved, read, write
from .axes import dataset, labelled, token_table
from .captures import Captures
from .input_result import InputResult
from .stacking import stack_inputs
from .summary import summary_rows
from .tables import html_table, text_table

__all__ = ["Generation", "Gradients", "InputResult", "Result", "Run"]


class Result:
    """A finished request. With one input, its arrays are reached directly: `result["resid_post.10"]`, [pos, d_model].

    With several, through `result.inputs[name]`, or together: `result.stack("resid_post")`, `result.last("resid_post")`.
    """

    def __init__(self, started: Started, inputs: dict[str, InputResult], asked: Asked | None = None) -> None:
        self.started = started
        """Model, backend, dtype, library versions, and every hook as the worker understood it."""
        self.inputs = inputs
        """By name, in the order of the request."""
        self.asked_or_none = asked

    # ---- what was asked ----

    @property
    def asked(self) -> Asked:
        """The inputs, the plan, sampling and all else that was asked; `client.repeat(result)` asks it again.

        Raises NotFound for a result that was saved before results kept it.
        """
        if self.asked_or_none is None:
            raise NotFound("this result was written by a version that did not keep what was asked; ask again yourself")
        return self.asked_or_none

    @property
    def plan(self) -> Plan:
        """The hooks that were asked for, edits with their strengths and vectors, then the captures."""
        return self.asked.plan

    # ---- one input, or each of several ----

    @property
    def only(self) -> InputResult:
        """The one input. Raises InvalidArgument when there are several."""
        return self._only()

    def _only(self, otherwise: str = "", of_one: str = "") -> InputResult:
        """`otherwise`: what reads all inputs at once, for the message; `of_one`: what reads the same of one."""
        if len(self.inputs) == 1:
            return next(iter(self.inputs.values()))
        names = list(self.inputs)
        shown = ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")
        first = names[0] if names else "input"
        fix = f"; or all of them: {otherwise}" if otherwise else ""
        raise InvalidArgument(f"the request has the inputs {shown}; name one: result.inputs[{first!r}]{of_one}{fix}")

    @property
    def answered(self) -> tuple[str, ...]:
        """Names of the inputs that something is said of, in order; those that only others read are left out."""
        if self.asked_or_none is not None:
            return self.asked_or_none.answered
        return tuple(name for name, item in self.inputs.items() if item.finished is not None)

    @property
    def captures(self) -> Captures:
        """The one input's captures."""
        return self._only("result.stack(site), result.last(site)", ".captures").captures

    @property
    def sites(self) -> tuple[str, ...]:
        """The captured sites of all inputs together, in forward order."""
        return Captures(entry for item in self.inputs.values() for entry in item.captures.entries).sites

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The one input's token ids, prompt and generated; index = position."""
        return self._only(of_one=".token_ids").token_ids

    @property
    def tokens(self) -> tuple[str, ...]:
        """The one input's tokens as text; index = position."""
        return self._only(of_one=".tokens").tokens

    @property
    def usage(self) -> Usage:
        """Token counts of all inputs together."""
        found = [item.finished.usage for item in self.inputs.values() if item.finished is not None]
        return Usage(sum(u.prompt_tokens for u in found), sum(u.completion_tokens for u in found))

    @property
    def timings(self) -> Timings | None:
        """Seconds, measured in the worker; of several inputs, each figure of the slowest: those of a request run together."""
        found = [item.timings for item in self.inputs.values() if item.timings is not None]
        if not found:
            return None
        return Timings(*(max(getattr(t, name) for t in found) for name in ("queued_s", "first_token_s", "total_s")))

    @property
    def stored(self) -> tuple[StoredCapture, ...]:
        """Captures kept on the server, of all inputs."""
        return tuple(capture for item in self.inputs.values() for capture in item.stored)

    def __getitem__(self, site: str) -> Array:
        """The one input's rows at a site: [pos, …the site's own axes], read-only."""
        return self._only(f"result.stack({site!r}), result.last({site!r})", f"[{site!r}]").captures[site]

    def positions(self, site: str) -> tuple[int, ...]:
        """Absolute position of each row."""
        return self._only(of_one=f".positions({site!r})").captures.positions(site)

    def hook(self, key: str | int) -> Captures:
        """What one hook read, by its id or its index."""
        return self._only(of_one=f".hook({key!r})").captures.hook(key)

    def revision(self, number: int) -> Captures:
        """What the hooks read that are what they are since a revision of the session."""
        return self._only(of_one=f".revision({number})").captures.revision(number)

    # ---- several inputs at once ----

    def stack(self, name: str, *, inputs: bool | None = None) -> Array:
        """[layer, pos, …] of a kind of site ("resid_post"), [pos, …] of one; of several inputs [input, layer, pos, …].

        Inputs are in the order of `answered`. They need as many rows each: prompts of one length, or a capture with
        positions=-1 or reduce="last". `inputs` True: with that axis also for a single input; False: never.
        Raises InvalidArgument when the shapes differ.
        """
        return self._over(lambda item: item.captures.stack(name), f"stack({name!r})", name, inputs)

    def last(self, name: str, *, inputs: bool | None = None) -> Array:
        """The row of the last token that the model read: [layer, …] or […]; of several inputs [input, layer, …].

        Prompts may differ in length. `inputs` as in `stack`. Raises NotFound when that row was not captured.
        """
        return self._over(lambda item: item.last(name), f"last({name!r})", name, inputs)

    def _over(self, read: Callable[[InputResult], Array], call: str, name: str, inputs: bool | None) -> Array:
        items = [self.inputs[one] for one in self.answered]
        if inputs is False or (inputs is None and len(self.inputs) == 1):
            return read(self._only(of_one=f".{call}"))
        return stack_inputs(items, read, call, name)

    # ---- for the libraries of others ----

    def to_xarray(self, site: str | None = None, *, inputs: bool | None = None) -> Any:
        """What `stack(site)` gives as an xarray.DataArray with layers, positions and tokens; without a site, a Dataset of all.

        `inputs` as in `stack`. Raises FailedPrecondition where xarray is not installed, InvalidArgument where rows differ.
        """

        return dataset(self, inputs) if site is None else labelled(self, site, inputs).to_xarray(site)

    def to_pandas(self, site: str | None = None, *, inputs: bool | None = None) -> Any:
        """A pandas.DataFrame: without a site, a row a token; of a site, its last axis as columns, the others as the index.

        `inputs` as in `stack`. Raises FailedPrecondition where pandas is not installed, InvalidArgument where rows differ.
        """

        return token_table(self) if site is None else labelled(self, site, inputs).to_pandas(site)

    # ---- a result is read like a dict of its sites ----

    def keys(self) -> tuple[str, ...]:
        """As `sites`."""
        return self.sites

    def values(self) -> Iterator[Array]:
        """The one input's array of each site. Raises InvalidArgument at one that holds several tensors."""
        return (self[site] for site in self.sites)

    def items(self) -> Iterator[tuple[str, Array]]:
        """Each site with its array, as of `values`."""
        return ((site, self[site]) for site in self.sites)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __contains__(self, site: object) -> bool:
        return any(site in item.captures for item in self.inputs.values())

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.keys())

    # ---- files ----

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, what was asked too, dtypes kept; `load` reads it back."""
        inputs = tuple(self.inputs.values())
        return write(Saved(type(self).__name__, self.started, self.asked_or_none, inputs), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises InvalidArgument when the file holds another kind of result."""
        saved = read(path)
        kind = KINDS.get(saved.kind)
        if kind is None or not issubclass(kind, cls):
            raise InvalidArgument(f"{path} holds a {saved.kind}, not a {cls.__name__}")
        return kind(saved.started, {item.name: item for item in saved.inputs}, saved.asked)

    def __repr__(self) -> str:
        return text_table(type(self).__name__, self._rows())

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return summary_rows(self.started, list(self.inputs.values()), self.asked_or_none)


class Run(Result):
    """One forward pass over each input."""


class Generation(Result):
    """A continuation of each input."""

    @property
    def text(self) -> str:
        """What was generated from the one input."""
        return self._only("result.texts()", ".text").text

    def texts(self) -> dict[str, str]:
        """What was generated, by input."""
        return {name: self.inputs[name].text for name in self.answered}

    @property
    def logprobs(self) -> NDArray[np.float64] | None:
        """[new token] of the one input; None where `logprobs` was not asked for."""
        return self._only(of_one=".logprobs").logprobs

    @property
    def finish_reason(self) -> str:
        """stop, eos or length."""
        return self._only(of_one=".finish_reason").finish_reason

    @property
    def tokens_per_s(self) -> float:
        """New tokens a second of the one input."""
        return self._only(of_one=".tokens_per_s").tokens_per_s


class Gradients(Result):
    """The gradient of a metric at sites of each input: `found.gradients["mlp_act.3"]`, [pos, d_mlp]; values in `captures`."""

    @property
    def metric(self) -> float:
        """What the gradient was taken of, on the one input."""
        return self._only("result.metrics()", ".metric").metric

    def metrics(self) -> dict[str, float]:
        """What the gradient was taken of, by input."""
        return {name: self.inputs[name].metric for name in self.answered}

    @property
    def gradients(self) -> Captures:
        """The one input's gradients."""
        return self._only('result.stack(site, of="gradients")', ".gradients").gradients

    def stack(
        self, name: str, *, inputs: bool | None = None, of: Literal["captures", "gradients"] = "captures"
    ) -> Array:
        """As of every result; `of` "gradients": the gradients in place of the values."""
        if of not in ("captures", "gradients"):
            raise InvalidArgument(f"of {of!r}; allowed: captures, gradients")

        def read(item: InputResult) -> Any:
            return getattr(item, of).stack(name)

        return self._over(read, f"{of}.stack({name!r})", name, inputs)


KINDS: dict[str, type[Result]] = {kind.__name__: kind for kind in (Run, Generation, Gradients)}
"""By the name that a file calls them by."""
