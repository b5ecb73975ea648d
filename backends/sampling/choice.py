"""Sampling from float32 logits on the host: Gumbel-max with noise keyed by (seed, token index).

Neither the batch nor the backend enters the noise, so equal logits give equal tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.generation.sampling import Sampling

__all__ = ["Choice", "Logits", "choose_token", "logprobs_of"]

Logits = NDArray[np.float32]
MIN_UNIFORM = 2.0**-53
GREEDY_BELOW = 1e-5
"""Temperatures under it are 0: they could only choose between logits that are equal, or as good as."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token, with log-probabilities where they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose_token(logits: Logits, sampling: Sampling, seed: int, index: int) -> int:
    """The next token. `logits` is [vocab]; `index` is 0 for the first new token."""
    peak = float(logits.max())
    if sampling.temperature < GREEDY_BELOW or not np.isfinite(peak):
        return int(np.argmax(logits))
    scaled = (logits.astype(np.float64) - peak) / sampling.temperature
    kept = _kept(scaled, sampling)
    noisy = scaled + gumbel(seed, index, len(logits))
    if kept is not None:
        return int(kept[np.argmax(noisy[kept])])
    return int(np.argmax(noisy))


def gumbel(seed: int, index: int, n: int) -> NDArray[np.float32]:
    """Standard Gumbel noise of token `index`: [n]."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, 0, 0, index]))
    uniform = np.maximum(generator.random(n), MIN_UNIFORM)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def _kept(scaled: NDArray[np.float64], sampling: Sampling) -> NDArray[np.int64] | None:
    """Candidates left by top-k, then top-p (nucleus: the smallest set of at least that mass); None for all."""
    if not sampling.top_k and sampling.top_p >= 1.0:
        return None
    order = np.argsort(-scaled, kind="stable")  # ties by token id, the same on every backend
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.top_p < 1.0:
        weights = np.exp(scaled[order])
        mass = np.cumsum(weights / weights.sum())
        order = order[: int(np.searchsorted(mass, sampling.top_p)) + 1]
    return order


def logprobs_of(logits: Logits, token: int, n_top: int) -> Choice:
    """The token with its log-probability and those of the n likeliest."""
    shifted = logits.astype(np.float64) - float(logits.max())
    log_sum = np.log(np.exp(shifted).sum())
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        best = np.argsort(-logits, kind="stable")[:n_top]
        top = tuple((int(i), float(shifted[i] - log_sum)) for i in best)
    return Choice(token, float(shifted[token] - log_sum), top)
