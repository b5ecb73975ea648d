"""What circuits do to each other: each one's task under its own circuit, under the others', and under all together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ..ablation.reference import Reference
from ..reports.statistics import CONFIDENCE, Figure, measured
from ..reports.verdicts import Check, Verdict, judged, overall
from ..tasks import FittedTask
from .ablated import Ablation, ablated
from .circuit import Circuit
from .composition import compose_circuits, lifted
from .faithfulness import random_masks
from .space import Mask

__all__ = ["Interference", "interference"]

Floats = NDArray[np.float64]
LOSS = 0.05
"""Of its faithfulness, that a task may lose in company."""


@dataclass(frozen=True, slots=True, eq=False)
class Interference:
    """Faithfulness of every task under every circuit; columns are the members, then the composition."""

    names: tuple[str, ...]
    figures: tuple[tuple[Figure, ...], ...]
    """By task, then by circuit, the composition last; each with its interval over prompts."""
    harm: Floats
    """[task i, member j]: F[i, A_i] − F[i, A_i ∪ A_j]. Positive: j harms i, as its negative units do. 0 on the diagonal."""
    random: Floats
    """[task, draw]: under random circuits of the composition's size."""
    checks: tuple[Check, ...]
    """For each task: what the composition costs it, and whether it is better than random."""
    sizes: tuple[int, ...]
    """Units of each member."""
    size: int
    """Units of the composition."""
    ablation: str

    @property
    def matrix(self) -> Floats:
        """[task, member, and the composition last]"""
        return np.array([[figure.value for figure in row] for row in self.figures])

    @property
    def verdict(self) -> Verdict:
        """Pass where every task keeps its faithfulness, within .05, and beats random circuits."""
        return overall(self.checks)

    @property
    def worst(self) -> tuple[str, str, float]:
        """(task, member that harms it most, how much)."""
        i, j = np.unravel_index(int(np.argmax(self.harm)), self.harm.shape)
        return self.names[int(i)], self.names[int(j)], float(self.harm[i, j])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "names": list(self.names),
            "ablation": self.ablation,
            "figures": [[figure.to_json() for figure in row] for row in self.figures],
            "harm": self.harm.tolist(),
            "random": self.random.tolist(),
            "sizes": list(self.sizes),
            "size": self.size,
            "checks": [check.to_json() for check in self.checks],
            "verdict": self.verdict,
        }

    def __repr__(self) -> str:
        width = max(12, *(len(name) for name in self.names)) + 2
        head = " " * width + "".join(f"{name:>{width}}" for name in (*self.names, "all together"))
        rows = [
            f"{name:<{width}}" + "".join(f"{value:>{width}.2f}" for value in row)
            for name, row in zip(self.names, self.matrix, strict=True)
        ]
        victim, culprit, amount = self.worst
        told = f"worst: {culprit} on {victim} {amount:+.2f}; {self.size} units of {sum(self.sizes)} together; {self.verdict}"
        return "\n".join([head, *rows, told])


def interference(
    client: Client,
    members: Mapping[str, tuple[Circuit, FittedTask]],
    composition: Circuit | None = None,
    *,
    ablation: Ablation = "patch",
    reference: Reference | Prompts | None = None,
    n_random: int = 20,
    seed: int = 0,
    progress: bool = False,
    model: str = "",
) -> Interference:
    """Every task under every circuit, on prompts that no circuit was found on (give held-out ones).

    `composition`: default the union of all. Faithfulness is (v − F(∅)) / (F(M) − F(∅)) averaged over prompts; intervals
    are over prompts, with the scale F(M) − F(∅) held. Raises InvalidArgument for fewer than two members, and what
    `compose_circuits` and `ablated` raise.
    """
    if len(members) < 2:
        raise InvalidArgument(f"interference is between two circuits or more, got {len(members)}")
    names = tuple(members)
    whole = composition or compose_circuits([circuit for circuit, _ in members.values()])
    own = [lifted(circuit, whole.space).mask for circuit, _ in members.values()]
    rng_masks = random_masks(whole.space, whole.mask, n=n_random, seed=seed)
    figures: list[tuple[Figure, ...]] = []
    harm, random, checks = np.zeros((len(own), len(own))), np.zeros((len(own), n_random)), list[Check]()
    for i, (name, (_, task)) in enumerate(members.items()):
        judge = ablated(
            client,
            task.clean,
            task.corrupt,
            task.metrics,
            whole.space,
            ablation=ablation,
            reference=reference,
            progress=progress,
            model=model,
        )
        others = [j for j in range(len(own)) if j != i]
        masks: list[Mask] = [*own, whole.mask, *(own[i] | own[j] for j in others), *rng_masks]
        shares = _shares(judge.values(masks), judge.empty, judge.full, name)
        figures.append(tuple(measured(row, seed=seed) for row in shares[: len(own) + 1]))
        pairs = shares[len(own) + 1 : len(own) + 1 + len(others)].mean(axis=1)
        harm[i, others] = shares[i].mean() - pairs
        random[i] = shares[len(own) + 1 + len(others) :].mean(axis=1)
        checks += _checks(name, shares[len(own)], shares[i], random[i], seed)
    sizes = tuple(int(mask.sum()) for mask in own)
    return Interference(names, tuple(figures), harm, random, tuple(checks), sizes, len(whole), ablation)


def _shares(values: Floats, empty: float, full: float, name: str) -> Floats:
    """[circuit, prompt]: (v − F(∅)) / (F(M) − F(∅)), whose mean over prompts is the faithfulness."""
    if full == empty:
        raise InvalidArgument(f"ablating every unit leaves {name} at {full:g}; nothing in this space matters to it")
    return (values - empty) / (full - empty)


def _checks(name: str, together: Floats, alone: Floats, random: Floats, seed: int) -> list[Check]:
    loss = judged(f"{name}: kept in company", measured(together - alone, seed=seed), -LOSS, suite="composition")
    p = (1 + int((random >= together.mean()).sum())) / (1 + len(random))
    chance = Figure(p, p, p, len(random), len(random), CONFIDENCE, seed, 0.0)
    return [loss, judged(f"{name}: better than random", chance, 0.05, worse="higher", suite="composition", unit="p")]
