"""Log-likelihoods of texts behind texts, of several subjects in the same requests. Only the numbers cross the wire."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import NextLogprob, capture
from ...clients.progress import progress_bar
from ...clients.results.captures import Captures
from ...protos.errors import InvalidArgument
from .subject import Subject, same_model

__all__ = ["Likelihood", "Piece", "likelihoods", "piece"]

INPUTS_A_REQUEST = 32
TOKENS_A_REQUEST = 8192
"""Of all its inputs together."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Token ids, of which those from `start` on are scored."""

    token_ids: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.token_ids):
            raise InvalidArgument(
                f"of {len(self.token_ids)} tokens those from {self.start} on cannot be scored; a token needs one before it"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """What one subject makes of one piece."""

    own: Floats
    """[token]: natural log-probabilities of the scored tokens."""
    greedy: bool
    """Every one of them is the likeliest at its place."""

    @property
    def total(self) -> float:
        """Their sum."""
        return float(self.own.sum())


def piece(context: Sequence[int], continuation: Sequence[int], longest: int = 0) -> Piece:
    """`continuation` scored behind `context`, of which the beginning is left out past `longest` tokens (0: none)."""
    whole = (*context, *continuation)[-longest:]
    return Piece(whole, max(1, len(whole) - len(continuation)))


def likelihoods(
    subjects: Sequence[Subject], pieces: Sequence[Piece], *, label: str = "scoring", progress: bool = True
) -> list[list[Likelihood]]:
    """[subject][piece], each piece of all subjects in one request; longest first, as the first batch fails if any does."""
    same_model(subjects)
    found: list[list[Likelihood | None]] = [[None] * len(pieces) for _ in subjects]
    with progress_bar(label, "prompts", show=progress) as bar:
        done = 0
        for batch in _batches(pieces, len(subjects)):
            bar(done, len(pieces))
            for row, scores in zip(found, _scored(subjects, [pieces[i] for i in batch]), strict=True):
                for i, score in zip(batch, scores, strict=True):
                    row[i] = score
            done += len(batch)
    return [[score for score in row if score is not None] for row in found]


def _batches(pieces: Sequence[Piece], n_subjects: int) -> Iterator[list[int]]:
    """Indices of pieces, requests of at most so many inputs and tokens."""
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i].token_ids))
    most, batch = max(1, INPUTS_A_REQUEST // n_subjects), list[int]()
    for i in order:
        longest = len(pieces[batch[0]].token_ids) if batch else 0
        if batch and (len(batch) == most or (len(batch) + 1) * longest * n_subjects > TOKENS_A_REQUEST):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _scored(subjects: Sequence[Subject], pieces: Sequence[Piece]) -> list[list[Likelihood]]:
    names = [[f"{s}.{i}" for i in range(len(pieces))] for s in range(len(subjects))]
    inputs = [
        item
        for subject, own in zip(subjects, names, strict=True)
        for item in subject.inputs({name: one.token_ids for name, one in zip(own, pieces, strict=True)})
    ]
    edits = [hook for subject, own in zip(subjects, names, strict=True) for hook in subject.edits(own)]
    reads = [
        capture(
            "logits",
            reduce=NextLogprob(top=1),
            spans=[(one.start - 1, len(one.token_ids) - 1)],
            inputs=[own[i] for own in names],
        )
        for i, one in enumerate(pieces)
    ]
    first = subjects[0]
    run = first.client.run(inputs, hooks=edits, capture=reads, model=first.model, progress=False)
    return [[_likelihood(run.inputs[name].captures) for name in own] for own in names]


def _likelihood(captures: Captures) -> Likelihood:
    own, best = captures["logits"].astype(np.float64), captures.top_k("logits")[0][:, 0]
    return Likelihood(own, bool((own == best).all()))
