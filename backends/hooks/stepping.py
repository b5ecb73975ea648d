"""What the two engines do alike after a forward."""

from __future__ import annotations

import numpy as np

from ...protos.sites import Site
from ...protos.spec import NextLogprob
from ...protos.tensors import Array, numpy_dtype
from ..sampling.choice import Choice
from .bound import choose
from .overflow import NotFinite
from .row_span import RowSpan
from .sequence import Rows, StepResult

__all__ = ["not_finite", "result_of", "sampled_logprob_rows"]

_LOGITS = Site("logits")


def result_of(slot: RowSpan, rows: list[Rows], choice: Choice | None) -> StepResult:
    """The step's outcome for one sequence; a failed one brings its error and nothing else."""
    sequence, revision = slot.sequence, slot.plan.revision
    if slot.error is not None:
        return StepResult(sequence, error=slot.error, revision=revision)
    if choice is None:
        return StepResult(sequence, tuple(rows), revision=revision)
    top = choice.top[: sequence.sampling.logprobs or 0]  # a hook may have asked for more
    return StepResult(sequence, tuple(rows), choice.token, choice.logprob, top, revision)


def not_finite(slot: RowSpan) -> NotFinite:
    """What is said of a sequence from whose logits no token can be sampled."""
    position = slot.position + slot.n - 1
    return NotFinite(
        f"the logits after position {position} of sequence {slot.sequence.id} are no numbers (they overflowed)"
    )


def sampled_logprob_rows(slot: RowSpan, choice: Choice) -> list[Rows]:
    """`next_logprob` rows of the row a token was just sampled from: only the sampler knows which token follows."""
    position = slot.position + slot.n - 1
    rows: list[Rows] = []
    for bound, _ in slot.plan.by_site.get(_LOGITS, ()):
        capture = bound.hook.capture
        if capture is None or not isinstance(capture.reduce, NextLogprob) or choice.logprob is None:
            continue
        tokens = None if slot.tokens is None else slot.tokens[-1:]
        if choose(bound, slot.plan, _LOGITS, np.array([position]), tokens).all():
            own, *top = _parts(choice, capture.reduce.top, capture.dtype or "float32")
            rows.append(Rows(bound.index, ("logits",), (position,), own))
            rows += [
                Rows(bound.index, ("logits",), (position,), values, part)
                for part, values in zip(("value", "index"), top, strict=bool(top))
            ]
    return rows


def _parts(choice: Choice, n_top: int, dtype: str) -> list[Array]:
    """The token's own [site, row]; where they are asked for, the likeliest ones' and which they are, [site, row, n]."""
    found = [np.array([[choice.logprob]], dtype=numpy_dtype(dtype))]
    if n_top:
        index, values = zip(*choice.top[:n_top], strict=True)
        found += [np.array([[values]], dtype=numpy_dtype(dtype)), np.array([[index]], dtype=np.int64)]
    return found
