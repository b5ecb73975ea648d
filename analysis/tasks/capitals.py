"""Capitals: "The capital of France is" → " Paris". Templates of our own; the countries are those most written about."""

from __future__ import annotations

import random

from ...protos.errors import InvalidArgument
from .data import read, render
from .task import Example, Task

__all__ = ["capitals"]


def capitals(n: int = 200, *, seed: int = 0) -> Task:
    """`n` distinct examples; templates take turns. The corrupt prompt asks about another country.

    Labels: template, country. Roles: country (where it is named last), end. Raises InvalidArgument for n outside
    1 … the number of templates and ordered pairs of countries.
    """
    data, rng = read("capitals"), random.Random(seed)
    known: dict[str, str] = data["capitals"]
    most = len(data["templates"]) * len(known) * (len(known) - 1)
    if not 1 <= n <= most:
        raise InvalidArgument(f"n must be in 1 … {most}, got {n}")
    # Each template sees the pairs in the same order: a turn of templates therefore asks about the same two countries.
    pairs = [(a, b) for a in known for b in known if a != b]
    rng.shuffle(pairs)
    cells = [(number, *pair) for pair in pairs for number in range(len(data["templates"]))]
    examples: list[Example] = []
    for number, country, other in cells[:n]:
        clean, spans = render(data["templates"][number], {"country": country})
        corrupt, _ = render(data["templates"][number], {"country": other})
        roles = {"country": spans["country"], "end": (len(clean) - 1, len(clean))}
        labels = {"template": str(number), "country": country}
        examples.append(Example(clean, corrupt, (f" {known[country]}",), (f" {known[other]}",), roles, labels))
    return Task("capitals", tuple(examples), "capitals of countries; corrupt: another country")
