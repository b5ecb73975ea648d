"""What is left of a change under each attack, beside what the change costs under the same wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook
from ....clients.progress import progress_bar
from ....clients.requests.prompts import Prompt
from ....protos.errors import InvalidArgument
from ....protos.variants.use import VariantUse
from ...reports.subject import Subject
from .attacks import AS_ASKED, ATTACKS, Attack
from .behaviour import BehaviourScores, score_behaviour

__all__ = ["Attacked", "UnderAttack", "attacked"]

CHATS_A_REQUEST = 16
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class UnderAttack:
    """One wording."""

    attack: Attack
    scores: BehaviourScores
    """First token: on positives, on negatives (over-refusal), and KL on negatives, all under this wording."""
    said: tuple[Bools, Bools] | None = None
    """[0 without, 1 with the change; prompt] of positives and of negatives: the greedy answer holds one of the marks."""

    @property
    def effect(self) -> float:
        """Change of the mean probability on positives."""
        return float(self.scores.positives[1].mean() - self.scores.positives[0].mean())

    def __str__(self) -> str:
        told = f"{self.attack.name}: {self.scores}"
        if self.said is None:
            return told
        shares = [f"{side[0].mean():.0%} → {side[1].mean():.0%}" for side in self.said]
        return f"{told}; answers that say it: positives {shares[0]}, negatives {shares[1]}"


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """A change under several wordings; the first row is without an attack."""

    rows: tuple[UnderAttack, ...]

    def __getitem__(self, name: str) -> UnderAttack:
        for row in self.rows:
            if row.attack.name == name:
                return row
        raise KeyError(f"no attack {name!r}; there are {', '.join(row.attack.name for row in self.rows)}")

    def kept(self, name: str) -> float:
        """The change's effect on positives under an attack ÷ that without one: 1, it holds; 0, the wording undoes it."""
        plain = self.rows[0].effect
        return self[name].effect / plain if plain else float("nan")

    def __str__(self) -> str:
        return "\n".join(
            [str(self.rows[0]), *(f"{row} (kept {self.kept(row.attack.name):.0%})" for row in self.rows[1:])]
        )


def attacked(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    tokens: Sequence[int],
    *,
    attacks: Sequence[Attack] = ATTACKS,
    marks: Sequence[str] = (),
    n_new: int = 24,
    hooks: Sequence[Hook] = (),
    variants: Sequence[VariantUse] = (),
    model: str = "",
    progress: bool = True,
) -> Attacked:
    """Score a change under each wording, with and without it; the plain wording comes first whether it is named or not.

    `tokens`: those that the behaviour begins with. Behind a begun answer it may begin otherwise (" I" for "I"), or later:
    name both, and `marks`, texts one of which a greedy answer of `n_new` tokens holds where it shows the behaviour.
    Raises InvalidArgument for no change, two attacks of one name, and as `Attack.worded`.
    """
    if not hooks and not variants:
        raise InvalidArgument("nothing is attacked: give the change as hooks or variants")
    chosen = [AS_ASKED, *(one for one in attacks if one != AS_ASKED)]
    if len({one.name for one in chosen}) < len(chosen):
        raise InvalidArgument(f"attacks are told apart by their names, got {[one.name for one in chosen]}")
    subject = Subject(client, model, tuple(hooks), tuple(variants))
    worded = [
        tuple([one.worded(client, prompt, model=model) for prompt in side] for side in (positives, negatives))
        for one in chosen
    ]  # before anything runs: an attack that does not fit is told at once
    rows: list[UnderAttack] = []
    with progress_bar("attacks", "steps", show=progress) as bar:
        for one, (ones, zeros) in zip(chosen, worded, strict=True):
            bar(len(rows), len(chosen))
            scores = score_behaviour(client, ones, zeros, tokens, hooks=hooks, variants=variants, model=model)
            said = (_said(subject, ones, marks, n_new), _said(subject, zeros, marks, n_new)) if marks else None
            rows.append(UnderAttack(one, scores, said))
    return Attacked(tuple(rows))


def _said(subject: Subject, prompts: Sequence[Prompt], marks: Sequence[str], n_new: int) -> Bools:
    """[2, prompt]: base and changed, side by side in the same requests."""
    found = np.zeros((2, len(prompts)), dtype=np.bool_)
    step = CHATS_A_REQUEST // 2
    for start in range(0, len(prompts), step):
        some = prompts[start : start + step]
        names = [[f"{s}.{i}" for i in range(len(some))] for s in range(2)]
        inputs = [
            item
            for one, own in zip((subject.base, subject), names, strict=True)
            for item in one.inputs(dict(zip(own, some, strict=True)))
        ]
        made = subject.client.generate(inputs, hooks=subject.edits(names[1]), model=subject.model, max_new_tokens=n_new)
        for s in range(2):
            for i, name in enumerate(names[s]):
                found[s, start + i] = any(mark in made.inputs[name].text for mark in marks)
    return found
