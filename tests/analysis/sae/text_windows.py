"""Windows of latents written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probewire.analysis.sae.latents.stream import TextWindow

__all__ = ["random_windows", "window"]


def window(
    tokens: Sequence[str], rows: Mapping[int, Mapping[int, float]], *, text: int = 0, skipped: int = 1
) -> TextWindow:
    """`rows`: position → latent → activation. A token's id is its letters' sum."""
    entries = [(position, latent, value) for position, row in rows.items() for latent, value in row.items()]
    ids = tuple(sum(map(ord, token)) for token in tokens)
    position, latent, value = (np.array([entry[i] for entry in entries]) for i in range(3))
    return TextWindow(
        text,
        ids,
        tuple(tokens),
        skipped,
        position.astype(np.int64),
        latent.astype(np.int64),
        value.astype(np.float32),
    )


def random_windows(n: int, d_sae: int, *, rate: float = 0.2, length: int = 12, seed: int = 0) -> list[TextWindow]:
    """Letters at random, latents at random; the first token is skipped."""
    rng = np.random.default_rng(seed)
    found: list[TextWindow] = []
    for index in range(n):
        fires = rng.random((length, d_sae)) < rate
        fires[0] = False
        values = rng.exponential(2.0, size=(length, d_sae)).astype(np.float32) + 1e-3
        rows = {int(p): {int(k): float(values[p, k]) for k in np.flatnonzero(fires[p])} for p in range(1, length)}
        found.append(window([chr(97 + int(i)) for i in rng.integers(0, 8, size=length)], rows, text=index))
    return found
