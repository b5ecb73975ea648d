"""Indirect object identification: "When Mary and John went …, John gave a drink to" → " Mary".

After Wang et al. 2022 (Interpretability in the Wild), with templates, names, places and objects of our own (ioi.json).
"""

from __future__ import annotations

import random
from typing import Literal

from ...protos.errors import InvalidArgument
from .data import read, render
from .task import Example, Task

__all__ = ["ORDERS", "ioi"]

MAX_EXAMPLES = 10_000
ORDERS = ("ABBA", "BABA")
"""A is the indirect object, B the subject; the first two letters are the order in which both are first named."""


def ioi(n: int = 400, *, corrupt: Literal["swap", "other"] = "swap", seed: int = 0) -> Task:
    """`n` distinct examples; templates and both orders take turns, so that any run of 20 has each once.

    `corrupt="swap"`: the second clause names the indirect object in the subject's place, so that the right answer
    becomes the subject. `"other"`: it names a third person, so that neither name is the better answer.
    Labels: order, template. Roles: io, s1, s2, end. Raises InvalidArgument for another `corrupt` or n outside 1 … 10,000.
    """
    if corrupt not in ("swap", "other"):
        raise InvalidArgument(f'corrupt is "swap" or "other", got {corrupt!r}')
    if not 1 <= n <= MAX_EXAMPLES:
        raise InvalidArgument(f"n must be in 1 … {MAX_EXAMPLES}, got {n}")
    data, rng = read("ioi"), random.Random(seed)
    cells = [(number, order) for number in range(len(data["templates"])) for order in ORDERS]
    made: dict[Example, None] = {}
    while len(made) < n:
        number, order = cells[len(made) % len(cells)]
        io, subject, third = rng.sample(data["names"], 3)
        names = (io, subject) if order == "ABBA" else (subject, io)
        words = {
            "first": names[0],
            "second": names[1],
            "place": rng.choice(data["places"]),
            "object": rng.choice(data["objects"]),
        }
        clean, spans = render(data["templates"][number], words | {"subject": subject})
        other, _ = render(data["templates"][number], words | {"subject": io if corrupt == "swap" else third})
        io_at, s1_at = ("first", "second") if order == "ABBA" else ("second", "first")
        roles = {"io": spans[io_at], "s1": spans[s1_at], "s2": spans["subject"], "end": (len(clean) - 1, len(clean))}
        labels = {"order": order, "template": str(number)}
        made[Example(clean, other, (f" {io}",), (f" {subject}",), roles, labels)] = None
    described = "the subject swapped for the indirect object" if corrupt == "swap" else "a third person as subject"
    return Task("ioi", tuple(made), f"indirect object identification; corrupt: {described}")
