"""Copying: random tokens said twice, and what comes next in the second saying. For any model, whatever its tokenizer.

Clean: a first token, A B C … , A B; the answer is C. Corrupt: other tokens in the first saying, so that nothing says C.
After Olsson et al. 2022, whose induction heads do this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...protos.errors import InvalidArgument
from .fitted import FittedExample, FittedTask
from .task import Example

__all__ = ["repeated_tokens_task"]


def repeated_tokens_task(
    vocabulary: Sequence[int],
    n: int = 16,
    *,
    length: int = 16,
    first: int | None = None,
    seed: int = 0,
    model: str = "",
) -> FittedTask:
    """`n` fitted examples of 1 + length + k tokens, k drawn from half the length upwards; lengths differ unless length is 2.

    `first`: the token that all begin with; default: one drawn from the vocabulary. The wrong answer is another token of the
    first saying. Raises InvalidArgument for a vocabulary below 2 · length + 1 distinct tokens.
    """
    pool = np.unique(np.asarray(vocabulary, dtype=np.int64))
    if length < 4 or n < 1 or len(pool) < 2 * length + 1:
        raise InvalidArgument(
            f"repeated tokens need length ≥ 4, n ≥ 1 and a vocabulary of 2 · length + 1 = {2 * length + 1} distinct tokens; got length "
            f"{length}, n {n}, {len(pool)} tokens"
        )
    rng = np.random.default_rng(seed)
    examples: list[FittedExample] = []
    for index in range(n):
        drawn: list[int] = rng.choice(pool, 2 * length + 1, replace=False).tolist()
        said, other, begin = drawn[:length], drawn[length : 2 * length], drawn[-1] if first is None else first
        k = int(rng.integers(length // 2, length))
        wrong = said[int(rng.integers(0, k - 1))]
        clean, corrupt = ((begin, *once, *said[:k]) for once in (said, other))
        texts = [" ".join(f"<{token}>" for token in ids) for ids in (clean, corrupt)]
        answers = f"<{said[k]}>", f"<{wrong}>"
        example = Example(texts[0], texts[1], (answers[0],), (answers[1],), labels={"k": str(k)})
        shown = [tuple(f"<{token}>" for token in ids) for ids in (clean, corrupt)]
        roles = {"copied": (1 + k,), "again": (1 + length,), "end": (len(clean) - 1,)}
        examples.append(
            FittedExample(str(index), clean, corrupt, shown[0], shown[1], (said[k],), (wrong,), roles, example)
        )
    return FittedTask("repeated tokens", tuple(examples), {}, model)
