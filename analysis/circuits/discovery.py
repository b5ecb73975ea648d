"""Finding circuits: keep the best-ranked units until the behaviour is kept, or drop units one by one while KL allows.

`prune_ranking` takes any scores (RelP, AtP, EAP of the sites) and finds how few of the best suffice. `acdc_nodes` needs no
scores; it follows ACDC (Conmy et al. 2023) in reverse topological order, over nodes. Edges: edge_circuits.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from .ablated import Ablated
from .circuit import Circuit, Origin
from .faithfulness import judge
from .joined import JoinedSpace
from .space import Mask, Scores

__all__ = ["Dropped", "Pruned", "acdc_nodes", "prune_ranking"]

PLANS_A_STEP = 8


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """The fewest best-ranked units that reach a faithfulness."""

    circuit: Circuit
    tried: tuple[tuple[int, float], ...]
    """(units kept, faithfulness), ascending: every size that was measured."""


def prune_ranking(
    model: Ablated,
    scores: Scores,
    *,
    target: float = 0.8,
    absolute: bool = False,
    tolerance: float = 0.05,
    method: str = "",
) -> Pruned:
    """Keep the best by score (by |score| with `absolute`) and drop the rest, as few as reach `target` faithfulness.

    Sizes are tried on a log scale, then between the largest that fails below the answer and the answer, until they differ by
    `tolerance` of it. Of a curve that is not monotone, the smallest size found that reaches the target. Raises
    InvalidArgument when no size does.
    """
    if not 0 < target <= 1 or not 0 < tolerance < 1:
        raise InvalidArgument(f"target must be in 0 … 1 and tolerance below 1, got {target} and {tolerance}")
    values, size = model.space.scores(scores), model.space.size
    span = model.full - model.empty
    if span == 0:
        raise InvalidArgument(f"ablating every unit leaves the metric at {model.full:g}; nothing in this space matters")
    tried: dict[int, float] = {0: 0.0, size: 1.0}

    def measure(sizes: Sequence[int]) -> None:
        new = sorted({n for n in sizes if n not in tried})
        if new:
            found = model.means([model.space.top(values, n, absolute=absolute) for n in new])
            tried.update(zip(new, ((found - model.empty) / span).tolist(), strict=True))

    measure(np.unique(np.geomspace(1, size, PLANS_A_STEP).astype(int)).tolist())
    while True:
        best = min(n for n, f in tried.items() if f >= target)
        below = max(n for n in tried if n < best)
        if best - below <= max(1, tolerance * best):
            break
        measure(np.unique(np.linspace(below, best, PLANS_A_STEP + 2).astype(int))[1:-1].tolist())
    origin = Origin(ablation=model.ablation, method=method, n_prompts=len(model.pairs))
    mask = model.space.top(values, best, absolute=absolute)
    return Pruned(judge(model, Circuit.of(model.space, mask, values, origin)), tuple(sorted(tried.items())))


@dataclass(frozen=True, slots=True, eq=False)
class Dropped:
    """What was left after dropping units that the output does not miss."""

    mask: Mask
    """Of the space's shape: what was kept."""
    rise: NDArray[np.float64]
    """KL rise when each unit was tried, in nats: below τ for those dropped."""
    kl: float
    """KL(full model ‖ circuit), in nats, mean over pairs."""


def acdc_nodes(model: Ablated, *, tau: float = 0.01) -> Dropped:
    """From the last unit to the first: ablate it, on top of all dropped so far, for good if KL then rises by less than τ.

    `model` must be measured by Kl("clean"). Units of one layer go MLP first; parts and positions from the last to the first.
    Dropping a node drops all its edges at once; single edges are edge_circuits.py's. Costs a forward a unit and pair.
    """
    wrong = [pair.metric for pair in model.pairs if pair.baseline != "clean"]
    if wrong:
        raise InvalidArgument(
            f'ACDC compares with the whole model; make it with the metric Kl("clean"), got {wrong[0]!r}'
        )
    if not tau > 0:
        raise InvalidArgument(f"tau must be above 0 (nats), got {tau}")
    space = model.space
    if isinstance(space, JoinedSpace):
        raise InvalidArgument("ACDC's order is that of one space; take its parts one by one, or prune_ranking")
    kept = np.ones(space.shape, dtype=bool)
    rise = np.zeros(space.size)
    current = float(model.means([kept])[0])
    for index in _reverse_order(space.sites, space.size // len(space.sites)):
        trial = kept.copy()
        trial.flat[index] = False
        found = float(model.means([trial])[0])
        rise[index] = found - current
        if rise[index] < tau:
            kept, current = trial, found
    return Dropped(kept, rise.reshape(space.shape), current)


def _reverse_order(sites: Sequence[str], n_each: int) -> list[int]:
    """Flat indices, from the last site of the forward pass to the first."""
    orders = [Site.parse(site).order for site in sites]
    if None in orders:
        raise InvalidArgument("raw module sites have no place in the forward pass; name sites of the table")
    ranked = sorted(range(len(sites)), key=lambda i: orders[i] or (0, 0), reverse=True)
    return [i * n_each + part for i in ranked for part in reversed(range(n_each))]
