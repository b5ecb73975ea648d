"""What rows of logits say as distributions: log-probabilities and divergences, shifted first and summed wide.

A difference of two large numbers keeps the rounding of both, so none is taken here; a logit of −inf has probability 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos.tensors import Array
from .ops import Ops

__all__ = ["divergence", "log_probability", "next_log_probability"]

MAX_WIDE = 1 << 17
"""Entries that are worked on at once, or one row: they stay in a core's cache, and a batch takes no gigabytes."""
_SMALL = 0.5
"""Below it a term is a product of e^r − 1 − r: as a difference of the shares it would keep no digits."""


def log_probability(ops: Ops, rows: Any, tokens: Sequence[int]) -> Any:
    """[row], wide: the natural logarithm of the summed probability of some tokens, from [row, vocab] logits."""
    return _joined(ops, [_log_probability(ops, rows[part], tokens) for part in _parts(rows)])


def _log_probability(ops: Ops, rows: Any, tokens: Sequence[int]) -> Any:
    shifted, log_total = _shifted(ops, rows)
    own = ops.take(shifted, ops.index(np.array(tokens)), -1)
    if len(tokens) == 1:
        return own[:, 0] - log_total
    highest = ops.stop(ops.max_last(own))
    highest = ops.where(highest == -np.inf, ops.zeros_like(highest), highest)  # all of them masked: log 0
    found = ops.sum_last(ops.exp(own - highest)).log() + highest[:, 0] - log_total
    above = ops.where(found > 0, found, ops.zeros_like(found))
    return found - ops.stop(above)  # two sums may round past each other


def next_log_probability(ops: Ops, rows: Any, tokens: NDArray[np.int64], top: int = 0) -> list[Any]:
    """[row], wide: the log-probability of one token each, from [row, vocab] logits.

    With `top`, those of the n likeliest [row, n], wide and largest first, and which tokens they are [row, n].
    """
    found: list[list[Any]] = []
    for part in _parts(rows):
        shifted, log_total = _shifted(ops, rows[part])
        found.append([ops.gather_last(shifted, ops.index(tokens[part])) - log_total])
        if top:
            _, index = ops.top_k(ops.f32(rows[part]), top)
            found[-1] += [ops.take_last(shifted, index) - log_total[:, None], index]
    return [_joined(ops, list(parts)) for parts in zip(*found, strict=True)]


def _shifted(ops: Ops, rows: Any) -> tuple[Any, Any]:
    """Logits less their row's largest, and the logarithm of what their exponentials sum to."""
    wide = ops.wide(rows)
    shifted = wide - ops.stop(ops.max_last(wide))
    return shifted, ops.sum_last(ops.exp(shifted)).log()


@dataclass(frozen=True, slots=True, eq=False)
class _Baseline:
    """The distribution that others are measured from."""

    shares: Any
    """[1, vocab]."""
    logits: Any
    """[1, vocab]."""
    peak: float
    log_mass: float
    """Of the logits less their peak."""


def divergence(ops: Ops, baseline: Array, rows: Any) -> Any:
    """[row], wide: KL(p ‖ q) in nats of p from [vocab] logits on the host and q from each of [row, vocab] on the device.

    Σ p·(e^r − 1 − r) with r = log q − log p. No term is negative, and an error of either normaliser
    enters squared. The gradient by a row is q − p.
    """
    given = baseline.astype(np.float64).reshape(1, -1)
    with np.errstate(invalid="ignore"):  # a row that is none stays not a number
        peak = float(given.max())
        weights = np.exp(given - peak)
        mass = float(weights.sum())
        shares = weights / mass
    p, other = (ops.wide(ops.device(array)) for array in (shares, given))
    base = _Baseline(p, other, peak, float(np.log(mass)))
    return _joined(ops, [_divergence(ops, base, rows[part]) for part in _parts(rows)])


def _divergence(ops: Ops, base: _Baseline, rows: Any) -> Any:
    p, moving = base.shares, ops.wide(rows)
    own = ops.stop(moving)
    top = ops.max_last(own)
    exps = ops.exp(own - top)
    total = ops.sum_last(exps)[:, None]
    q, zeros = exps / total, ops.zeros_like(exps)
    none = (p == 0) & (q == q)
    r = ops.where(none, zeros, own - base.logits - (top - base.peak) - (total.log() - base.log_mass))
    small = abs(r) < _SMALL
    curved = ops.exp_less(ops.where(small, r, zeros))
    terms = ops.where(none, q, ops.where(small, p * curved, ops.clip(q - p - p * r, 0.0, None)))
    slope = ops.where(none, q, ops.where(small, p * (r + curved), q - p))
    finite = own != -np.inf
    pull = ops.where(finite, moving, zeros) - ops.where(finite, own, zeros)  # zero, but for its gradient
    return ops.sum_last(terms) + ops.sum_last(slope * pull)


def _parts(rows: Any) -> list[slice]:
    n = max(1, MAX_WIDE // int(rows.shape[-1]))
    return [slice(start, start + n) for start in range(0, len(rows), n)]


def _joined(ops: Ops, parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else ops.join(parts)
