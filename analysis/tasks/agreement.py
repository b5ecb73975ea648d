"""Subject-verb agreement past an attractor: "The keys near the cabinet" → " are". Templates and nouns of our own.

The behaviour is that of Linzen et al. 2016; the pairs of forms follow Finlayson et al. 2021.
"""

from __future__ import annotations

import itertools
import random

from ...protos.errors import InvalidArgument
from .data import read, render
from .task import Example, Task

__all__ = ["agreement"]

NUMBERS = ("singular", "plural")


def agreement(n: int = 400, *, seed: int = 0) -> Task:
    """`n` distinct examples; subject and attractor take turns in number, so that any run of 4 has each pair once.

    The corrupt prompt has the subject in the other number. Answers are the three commonest verbs that agree, against
    the same three in the other number. Labels: number (of the subject), attractor (its number). Roles: subject,
    attractor, end (the last token). Raises InvalidArgument for n outside 1 … the number of combinations.
    """
    data, rng = read("agreement"), random.Random(seed)
    combinations = list(itertools.product(data["templates"], data["subjects"], data["attractors"]))
    rng.shuffle(combinations)
    if not 1 <= n <= 4 * len(combinations):
        raise InvalidArgument(f"n must be in 1 … {4 * len(combinations)}, got {n}")
    pairs = [(combination, *numbers) for combination in combinations for numbers in itertools.product((0, 1), (0, 1))]
    verbs = [tuple(pair[number] for pair in data["verbs"]) for number in (0, 1)]
    return Task(
        "agreement",
        tuple(_example(*words, number, other, verbs) for words, number, other in pairs[:n]),
        "subject-verb agreement; corrupt: the subject in the other number",
    )


def _example(
    template: str, subject: list[str], attractor: list[str], number: int, other: int, verbs: list[tuple[str, ...]]
) -> Example:
    clean, spans = render(template, {"subject": subject[number], "attractor": attractor[other]})
    corrupt, _ = render(template, {"subject": subject[1 - number], "attractor": attractor[other]})
    roles = {**spans, "end": (len(clean) - 1, len(clean))}
    labels = {"number": NUMBERS[number], "attractor": NUMBERS[other]}
    return Example(clean, corrupt, verbs[number], verbs[1 - number], roles, labels)
