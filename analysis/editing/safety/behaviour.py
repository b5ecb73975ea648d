"""A behaviour that shows in the first token of an answer: how strong it is, on prompts that call for it and on others.

Never a score without its cost: what others get of it (over-refusal) and how far their distribution moved stand beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, LogProb
from ....clients.requests.prompts import Prompt
from ....protos.errors import InvalidArgument
from ....protos.variants.use import VariantUse
from ...reports.at_ends import measure
from ...reports.statistics import Figure, measured, paired

__all__ = ["BehaviourScores", "Presence", "behaviour_present", "logodds", "score_behaviour"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BehaviourScores:
    """Of a change, beside the model without it."""

    positives: Floats
    """[0 without, 1 with the change; prompt]: probability that the answer begins with one of the tokens."""
    negatives: Floats
    """[2, prompt]: the same of prompts that do not call for it."""
    kl: Floats
    """[prompt]: KL(base ‖ changed) of the first token on the negatives, nats."""

    @property
    def removed(self) -> float:
        """Share of the behaviour on positives that is gone: 1 − with ÷ without."""
        return 1 - float(self.positives[1].mean() / self.positives[0].mean())

    @property
    def on_positives(self) -> Figure:
        """Change of the probability, paired."""
        return paired(self.positives[0], self.positives[1])

    @property
    def on_negatives(self) -> Figure:
        """Over-refusal: change of the probability where it is not called for."""
        return paired(self.negatives[0], self.negatives[1])

    @property
    def cost(self) -> Figure:
        """KL on negatives."""
        return measured(self.kl)

    def __str__(self) -> str:
        means = [side.mean(axis=1) for side in (self.positives, self.negatives)]
        return (
            f"positives {means[0][0]:.3f} → {means[0][1]:.3f} ({self.on_positives}), negatives {means[1][0]:.3f} → {means[1][1]:.3f} "
            f"({self.on_negatives}), KL on negatives {self.cost}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Presence:
    """Whether a model has the behaviour at all."""

    positives: Floats
    """[prompt]: log-odds of the tokens."""
    negatives: Floats
    difference: float
    interval: tuple[float, float]
    """95 %, bootstrap over prompts of both kinds."""

    @property
    def present(self) -> bool:
        """Whether the interval lies above 0."""
        return self.interval[0] > 0

    def __str__(self) -> str:
        low, high = self.interval
        told = f"log-odds {self.positives.mean():+.2f} on positives, {self.negatives.mean():+.2f} on negatives: {self.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
        return (
            told
            if self.present
            else f"{told}; the model does not tell the two apart by this behaviour, so its removal cannot be measured on it"
        )


def score_behaviour(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    tokens: Sequence[int],
    *,
    hooks: Sequence[Hook] = (),
    variants: Sequence[VariantUse] = (),
    model: str = "",
) -> BehaviourScores:
    """The probability of the tokens at the end of each prompt, with and without a change, and what the change costs."""
    prompts, n = [*positives, *negatives], len(positives)
    if not n or not len(negatives):
        raise InvalidArgument(
            "a behaviour is scored on positives and negatives; give both, as a score without its cost says nothing"
        )
    metric = LogProb(tokens=tuple(tokens))
    if variants:
        bare = measure(client, prompts, metric, [[]], kl=False, model=model).values
        changed = measure(client, prompts, metric, [list(hooks)], variants=variants, model=model)
        values, kl = np.concatenate([bare, changed.values]), changed.kl[0]
    else:  # one forward of the base serves both
        found = measure(client, prompts, metric, [[], list(hooks)], model=model)
        values, kl = found.values, found.kl[1]
    both = np.exp(values)
    return BehaviourScores(both[:, :n], both[:, n:], kl[n:])


def behaviour_present(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    tokens: Sequence[int],
    *,
    seed: int = 0,
    model: str = "",
) -> Presence:
    """Log-odds of the tokens on both sets, and whether they differ beyond chance: else nothing can be removed or measured."""
    metric = LogProb(tokens=tuple(tokens))
    found = logodds(measure(client, [*positives, *negatives], metric, [[]], kl=False, model=model).values[0])
    ones, zeros = found[: len(positives)], found[len(positives) :]
    rng = np.random.default_rng(seed)
    draws = [rng.choice(side, size=(4000, len(side))).mean(axis=1) for side in (ones, zeros)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return Presence(ones, zeros, float(ones.mean() - zeros.mean()), (float(low), float(high)))


def logodds(log_probabilities: Floats) -> Floats:
    """log p − log(1 − p)."""
    return log_probabilities - np.log(-np.expm1(np.minimum(log_probabilities, -1e-12)))
