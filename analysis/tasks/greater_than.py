"""Greater-than: "The war lasted from the year 1732 to the year 17" → an ending later than 32.

After Hanna et al. 2023 (How does GPT-2 compute greater-than?), with templates and nouns of our own.
"""

from __future__ import annotations

import random

from ...protos.errors import InvalidArgument
from .data import read, render
from .task import Example, Task

__all__ = ["greater_than"]

MAX_EXAMPLES = 10_000


def greater_than(n: int = 400, *, seed: int = 0) -> Task:
    """`n` distinct examples, half for tokenizers that write years in pairs of digits, half for single digits.

    Label `digits`: with "2" the answers are the two-digit endings above the start's, against those up to it; with "1"
    they are the next digits above the start's tens, against those below (the tens digit itself decides nothing). Fitting
    drops the half whose answers are not single tokens. The corrupt prompt starts in the year 01 of the century, which
    any ending exceeds. Roles: start (the year's last two digits), end. Raises InvalidArgument for n outside
    1 … 10,000.
    """
    if not 1 <= n <= MAX_EXAMPLES:
        raise InvalidArgument(f"n must be in 1 … {MAX_EXAMPLES}, got {n}")
    data, rng = read("greater_than"), random.Random(seed)
    made: dict[Example, None] = {}
    while len(made) < n:
        digits = 1 + len(made) % 2
        year = rng.randrange(20, 80) if digits == 1 else rng.randrange(2, 99)
        words = {"noun": rng.choice(data["nouns"]), "century": str(rng.choice(data["centuries"]))}
        template = rng.choice(data["templates"])
        clean, spans = render(template, words | {"start": f"{words['century']}{year:02}"})
        corrupt, _ = render(template, words | {"start": f"{words['century']}01"})
        roles = {"start": (spans["start"][1] - 2, spans["start"][1]), "end": (len(clean) - 1, len(clean))}
        made[Example(clean, corrupt, *_answers(digits, year), roles, {"digits": str(digits)})] = None
    return Task("greater-than", tuple(made), "the later of two years; corrupt: the first year ends in 01")


def _answers(digits: int, year: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if digits == 1:
        tens = year // 10
        return tuple(map(str, range(tens + 1, 10))), tuple(map(str, range(tens)))
    return tuple(f"{end:02}" for end in range(year + 1, 100)), tuple(f"{end:02}" for end in range(year + 1))
