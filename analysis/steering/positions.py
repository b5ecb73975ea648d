"""Which tokens of a prompt are steered, by named strategies; and where a unit of steering moves the measure most."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...clients import Client
from ...clients.requests.prompts import Prompt
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric

__all__ = ["STRATEGIES", "positions_of", "semantic_density"]

Floats = NDArray[np.float64]
STRATEGIES = ("last", "last_3", "first", "every_4", "all", "dense_3", "generated")
"""`first` is the token after the first, which no strategy steers: it holds most of the stream's norm and says nothing of the text."""
_NUMBERED = re.compile(r"(last|every|dense)_([1-9][0-9]?)")


def positions_of(strategy: str, n_tokens: int, density: Floats | None = None) -> tuple[int, ...]:
    """The prompt's tokens that a strategy steers; none of `generated`, which steers what follows the prompt.

    `last`, `last_K`, `first`, `every_K` (from the token after the first), `all`, and `dense_K`: the K of largest density
    ([pos], which it needs). Raises InvalidArgument for another name, and for a prompt shorter than 2 tokens.
    """
    if n_tokens < 2:
        raise InvalidArgument("a prompt of one token has none but the first, which is not steered; use longer prompts")
    if strategy == "generated":
        return ()
    if strategy == "last":
        return (n_tokens - 1,)
    if strategy == "first":
        return (1,)
    if strategy == "all":
        return tuple(range(1, n_tokens))
    match = _NUMBERED.fullmatch(strategy)
    if match is None:
        raise InvalidArgument(
            f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}, and last_K, every_K, dense_K"
        )
    kind, k = match[1], int(match[2])
    if kind == "last":
        return tuple(range(max(1, n_tokens - k), n_tokens))
    if kind == "every":
        return tuple(range(1, n_tokens, k))
    if density is None:
        raise InvalidArgument(f"{strategy} needs the prompt's density")
    densest = np.argsort(-density[1:n_tokens], kind="stable")[:k] + 1
    return tuple(sorted(int(p) for p in densest))


def semantic_density(
    client: Client, prompt: Prompt, vector: ArrayLike, site: str, measure: Metric, *, model: str = ""
) -> Floats:
    """[pos]: |v̂ · ∂m/∂h| · ‖h‖ at each token, v̂ of length 1: what steering there in proportion to the row would move, to first order."""
    direction = np.asarray(vector, dtype=np.float64)
    found = client.gradients(prompt, measure, at=site, capture=site, model=model, progress=False)
    rows, gradients = (np.asarray(part[site], dtype=np.float64) for part in (found, found.gradients))
    if direction.shape != rows.shape[-1:] or rows.ndim != 2:
        raise InvalidArgument(f"the vector is {list(direction.shape)}, rows of {site} are {list(rows.shape[1:])}")
    return np.abs(gradients @ (direction / np.linalg.norm(direction))) * np.linalg.norm(rows, axis=1)
