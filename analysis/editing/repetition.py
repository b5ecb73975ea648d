"""How much a text repeats itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["ngram_entropy", "repeated_share"]


def ngram_entropy(tokens: Sequence[int]) -> float:
    """Weighted mean of the entropies of bigrams (2/3) and trigrams (4/3), in bits: the fluency of Meng et al. 2022.

    Of a text that repeats itself it is near 0; shorter than three tokens it is 0.
    """
    return (2 / 3 * _entropy(tokens, 2) + 4 / 3 * _entropy(tokens, 3)) / 2


def repeated_share(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that occurred before in the text; 0 of a text shorter than that."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _entropy(tokens: Sequence[int], n: int) -> float:
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    share = np.array(list(counts.values()), dtype=np.float64)
    if not len(share):
        return 0.0
    share /= share.sum()
    return float(-(share * np.log2(share)).sum())
