"""Rows of activations with where they come from, read from the server a few sequences a request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, ModelInfo, capture
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.sites import Site
from ....protos.tensors import dtype_name
from .contexts import Contexts, Cursor

__all__ = ["INPUTS_A_REQUEST", "Group", "RowReader", "Rows", "joined", "row_norms"]

Ints = NDArray[np.int32]

INPUTS_A_REQUEST = 16


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Activations of tokens, one a row."""

    values: NDArray[Any]
    """[row, d_in], in the dtype that they were captured in."""
    norms: NDArray[np.float32]
    """[row]: Euclidean."""
    token_ids: Ints
    """[row]: the input token; -1 where it is not known, as below."""
    positions: Ints
    """[row]: in the sequence that the model read."""
    documents: Ints
    """[row]: index of the document in the corpus."""
    offsets: Ints
    """[row]: token of that document."""
    rules: NDArray[np.int8]
    """[row]: index of the rule that leaves it out; -1: it stays."""

    @classmethod
    def of(cls, values: NDArray[Any], **places: Any) -> Rows:
        """Rows of an array [row, d_in]; `places`: any of the other fields."""
        if values.ndim != 2:
            raise InvalidArgument(f"rows of activations are an array [row, d_in], got shape {list(values.shape)}")
        unknown = {
            name: np.full(len(values), -1, np.int32) for name in ("token_ids", "positions", "documents", "offsets")
        }
        made: dict[str, NDArray[Any]] = {
            "norms": row_norms(values),
            **unknown,
            "rules": np.full(len(values), -1, np.int8),
            **{name: np.asarray(place) for name, place in places.items()},
        }
        wrong = {name: list(array.shape) for name, array in made.items() if array.shape != (len(values),)}
        if wrong:
            raise InvalidArgument(f"{wrong}: each goes with one of {len(values)} rows")
        return cls(values, **made)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | NDArray[Any]) -> Rows:
        """Some of the rows."""
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[row]: no rule leaves it out."""
        return self.rules < 0


def joined(parts: list[Rows]) -> Rows:
    """Several, one after the other."""
    return Rows(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)))


def row_norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """[row]: Euclidean norms, summed in float32."""
    floats = values.astype(np.float32, copy=False)
    return np.sqrt(np.einsum("rd,rd->r", floats, floats))


@dataclass(frozen=True, slots=True, eq=False)
class RowReader:
    """A site's activations over a corpus. Sites with heads give all heads in a row: [pos, heads · d_head].

    The sequences of a request are always the same ones, as grouping begins at a cursor that ended a group before: so a
    resumed reading asks the server for exactly what an uninterrupted one asks for.
    """

    contexts: Contexts
    site: str
    inputs_a_request: int = INPUTS_A_REQUEST

    def __post_init__(self) -> None:
        if type(self.inputs_a_request) is not int or self.inputs_a_request < 1:
            raise InvalidArgument(f"inputs_a_request is 1 or more, got {self.inputs_a_request!r}")
        object.__setattr__(self, "site", str(Site.parse(self.site)))
        _require_rows(self.client.describe(self.contexts.model), Site.parse(self.site))

    @property
    def client(self) -> Client:
        """Where the activations come from."""
        return self.contexts.client

    def source(self) -> dict[str, Any]:
        """What the rows are, JSON-able: two readings with the same source and documents are the same rows.

        Its "dtype" and "d_in" are those of a row that the server gave.
        """
        info = self.client.describe(self.contexts.model)
        row = self.client.run([[0]], capture=[capture(self.site)], model=self.contexts.model)[self.site]
        return {
            "model": info.id,
            "model_hash": info.model_hash,
            "model_dtype": info.dtype,
            "backend": info.backend,
            "site": self.site,
            "d_in": math.prod(row.shape[1:]),
            "dtype": dtype_name(row.dtype),
            **self.contexts.description,
            "inputs_a_request": self.inputs_a_request,
        }

    def groups(self, start: Cursor | None = None) -> Iterator[Group]:
        """All rows, request after request, from a cursor at which a group began."""
        contexts = self.contexts.read(start)
        while group := list(islice(contexts, self.inputs_a_request)):
            prompts = [context.token_ids.tolist() for context in group]
            run = self.client.run(prompts, capture=[capture(self.site)], model=self.contexts.model)
            values = np.concatenate([_flat(run.inputs[str(i)][self.site]) for i in range(len(group))])
            rows = Rows.of(
                values,
                token_ids=np.concatenate([context.token_ids for context in group]),
                positions=np.concatenate([np.arange(len(context.token_ids), dtype=np.int32) for context in group]),
                documents=np.concatenate([context.documents for context in group]),
                offsets=np.concatenate([context.offsets for context in group]),
            )
            _require_finite(rows, self.site)
            yield Group(group[0].start, rows, group[-1].read)

    def calibrated(self, tokens: int) -> tuple[float, Iterator[Group]]:
        """The median norm over the requests that hold the corpus's first `tokens` tokens, and all groups from the start.

        What is read for the median is kept and given again, so the corpus and the server are asked once.
        """
        groups, first, seen = self.groups(), list[Group](), 0
        while seen < tokens and (group := next(groups, None)) is not None:
            first.append(group)
            seen += len(group.rows)
        if not first:
            raise InvalidArgument("the corpus holds no document of two tokens or more; give more text")
        return float(np.median(np.concatenate([group.rows.norms for group in first]))), chain(first, groups)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The rows of one request."""

    start: Cursor
    """Where its first sequence begins."""
    rows: Rows
    read: Cursor
    """How far the corpus was read for it."""


def _require_rows(info: ModelInfo, site: Site) -> None:
    """Refuse sites without rows of one width."""
    known = info.site(site.name)
    if site.name == "module":
        return
    layered = known is not None and (known.layers is None or site.layer in known.layers)
    if known is not None and known.layers and not layered:
        raise InvalidArgument(
            f"site {site} does not exist; {site.name} has layers {known.layers[0]} … {known.layers[-1]} on this model"
        )
    if known is None or not layered or not known.run or not all(known.widths):
        note = f" ({known.note})" if known is not None and known.note else ""
        raise InvalidArgument(
            f"site {site} gives no rows of one width on this model{note}; it has {info.n_layers} layers: take one such as "
            "resid_post.1, mlp_act.1 or z.1"
        )


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), -1)


def _require_finite(rows: Rows, site: str) -> None:
    suspects = np.flatnonzero(~np.isfinite(rows.norms))  # or finite, but too large to be squared
    bad = suspects[~np.isfinite(rows.values[suspects].astype(np.float64)).all(axis=1)]
    if len(bad):
        first = int(bad[0])
        raise FailedPrecondition(
            f"{site} holds NaN or infinity at token {int(rows.offsets[first])} of document "
            f"{int(rows.documents[first])}, and in {len(bad)} rows of that request; load the model in a wider dtype "
            "(float32, bfloat16)"
        )
