"""How good a circuit is: faithfulness, completeness, minimality, curves over size, and circuits drawn at random.

F(C) is the metric with every unit outside C ablated; f(C) = (F(C) − F(∅)) / (F(M) − F(∅)). Sources: Wang et al. 2022,
Marks et al. 2024; curves, CPR and CMD: MIB (Mueller et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from .ablated import Ablated, Judged, Ranked
from .circuit import Circuit
from .edge_circuits import EdgeModel
from .edge_space import EdgeSpace
from .joined import JoinedSpace
from .space import Mask, Scores, Space

__all__ = [
    "FRACTIONS",
    "Curve",
    "Mib",
    "Minimality",
    "RandomControl",
    "area_from_one",
    "area_under",
    "completeness",
    "curve",
    "faithfulness",
    "incompleteness",
    "judge",
    "mib",
    "minimality",
    "random_control",
    "random_masks",
]

Floats = NDArray[np.float64]
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of all units, as MIB takes them."""


def faithfulness(model: Judged, circuit: Circuit | Mask) -> float:
    """f(C): 1 keeps the whole behaviour, 0 no more than the empty circuit. Raises InvalidArgument where F(M) = F(∅)."""
    return float(_scaled(model, [_mask(model, circuit)])[0])


def completeness(model: Judged, circuit: Circuit | Mask) -> float:
    """f of all outside the circuit: low where the circuit holds everything that matters."""
    return float(_scaled(model, [~_mask(model, circuit)])[0])


def judge(model: Ablated | EdgeModel, circuit: Circuit) -> Circuit:
    """The circuit with its faithfulness and completeness, and the ablation that they were measured with."""
    kept = _mask(model, circuit)
    f, rest = _scaled(model, [kept, ~kept])
    return circuit.with_origin(
        faithfulness=float(f), completeness=float(rest), ablation=model.ablation, n_prompts=len(model.pairs)
    )


# ---- over size ----


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Faithfulness of the best-ranked units, more and more of them."""

    fractions: tuple[float, ...]
    """Of all units."""
    n_units: tuple[int, ...]
    faithfulness: Floats
    """[fraction]"""
    ablation: str


def curve(model: Judged, scores: Scores, *, fractions: Sequence[float] = FRACTIONS, absolute: bool = False) -> Curve:
    """f of the top units by score (by |score| with `absolute`), at each fraction of all units (rounded down)."""
    values = model.space.scores(scores)
    if not fractions or any(not 0 <= f <= 1 for f in fractions) or list(fractions) != sorted(set(fractions)):
        raise InvalidArgument(f"fractions must ascend within 0 … 1, got {list(fractions)}")
    sizes = tuple(int(fraction * model.space.size + 1e-9) for fraction in fractions)
    masks = [model.space.top(values, n, absolute=absolute) for n in sizes]
    return Curve(tuple(fractions), sizes, _scaled(model, masks), model.ablation)


def area_under(found: Curve) -> float:
    """∫ f over linear fractions by trapezoids: CPR, where units were ranked by signed score. More is better."""
    return float(np.trapezoid(found.faithfulness, found.fractions))


def area_from_one(found: Curve) -> float:
    """∫ |1 − f| over linear fractions: CMD, where units were ranked by |score|. Less is better."""
    return float(np.trapezoid(np.abs(1.0 - found.faithfulness), found.fractions))


@dataclass(frozen=True, slots=True, eq=False)
class Mib:
    """A ranking as MIB's circuit track measures it."""

    cpr: float
    """Circuit performance ratio: area under f, ranked by signed score."""
    cmd: float
    """Circuit-model distance: area between f and 1, ranked by |score|."""
    signed: Curve
    absolute: Curve


def mib(model: Judged, scores: Scores, *, fractions: Sequence[float] = FRACTIONS) -> Mib:
    """CPR and CMD of a ranking; MIB's own figures are over edges with patch ablation."""
    signed = curve(model, scores, fractions=fractions)
    absolute = curve(model, scores, fractions=fractions, absolute=True)
    return Mib(area_under(signed), area_from_one(absolute), signed, absolute)


# ---- controls ----


@dataclass(frozen=True, slots=True, eq=False)
class RandomControl:
    """Random circuits of the same size."""

    faithfulness: float
    """Of the circuit itself."""
    random: Floats
    """[draw]"""

    @property
    def p_value(self) -> float:
        """Share of draws at least as faithful, the circuit itself counted as one."""
        return float((1 + (self.random >= self.faithfulness).sum()) / (1 + len(self.random)))


def random_control(
    model: Judged, circuit: Circuit | Mask, *, n: int = 20, seed: int = 0, by_site: bool = True
) -> RandomControl:
    """Circuits with as many units (`by_site`: as many at each site), drawn at random."""
    if n < 1:
        raise InvalidArgument(f"n must be 1 or more draws, got {n}")
    kept = _mask(model, circuit)
    masks = random_masks(model.space, kept, n=n, seed=seed, by_site=by_site)
    found = _scaled(model, [kept, *masks])
    return RandomControl(float(found[0]), found[1:])


def random_masks(space: Ranked, mask: Mask, *, n: int = 20, seed: int = 0, by_site: bool = True) -> list[Mask]:
    """Masks with as many units as one (`by_site`: as many at each site), drawn at random."""
    rng = np.random.default_rng(seed)
    return [_drawn(space, mask, rng, by_site) for _ in range(n)]


def _drawn(space: Ranked, kept: Mask, rng: np.random.Generator, by_site: bool) -> Mask:
    """As many units at random, of each site or of all; edges among those there are, of each sender or of all."""
    flat = kept.ravel()
    there = space.exists.ravel() if isinstance(space, EdgeSpace) else np.ones(flat.size, dtype=bool)
    named = isinstance(space, Space | JoinedSpace)
    groups = space.site_of if named else np.arange(flat.size, dtype=np.int64) // (flat.size // len(kept))
    drawn = np.zeros(flat.size, dtype=bool)
    for group in np.unique(groups).tolist() if by_site else (None,):
        places = np.flatnonzero(there if group is None else there & (groups == group))
        drawn[rng.choice(places, int(flat[places].sum()), replace=False)] = True
    return drawn.reshape(kept.shape)


def incompleteness(model: Judged, circuit: Circuit | Mask, *, n: int = 20, seed: int = 0) -> float:
    """max over random K ⊆ C of |F(C∖K) − F(M∖K)| / |F(M) − F(∅)|: 0 where the circuit fails as the model does.

    K takes each unit of the circuit with a probability drawn anew for every K; K = C is always among them.
    """
    kept, rng = _mask(model, circuit), np.random.default_rng(seed)
    dropped = [kept, *(kept & (rng.random(kept.shape) < rng.random()) for _ in range(n))]
    values = model.means([kept & ~k for k in dropped] + [~k for k in dropped])
    return float(np.abs(values[: len(dropped)] - values[len(dropped) :]).max() / abs(_range(model)))


@dataclass(frozen=True, slots=True, eq=False)
class Minimality:
    """What each unit of a circuit adds, where it adds most."""

    change: Floats
    """[unit]: max over K of |F(C∖(K∪v)) − F(C∖K)| / |F(M) − F(∅)|, in the order of `indices`."""
    indices: tuple[int, ...]
    """Flat indices in the space."""
    threshold: float

    @property
    def share(self) -> float:
        """Of units that change F by more than the threshold for some K: 1 is minimal."""
        return float((self.change > self.threshold).mean())


def minimality(
    model: Judged,
    circuit: Circuit | Mask,
    *,
    n: int = 4,
    threshold: float = 0.01,
    max_units: int = 200,
    seed: int = 0,
) -> Minimality:
    """For each unit v, F with and without it, beside the whole circuit (K = ∅) and `n` random halves of it.

    Costs (n + 1) forwards a unit and pair; circuits above `max_units` are sampled. Every unit of a minimal circuit has
    a K with a change above `threshold` (a share of F(M) − F(∅)).
    """
    kept, rng = _mask(model, circuit), np.random.default_rng(seed)
    indices = np.flatnonzero(kept)
    if len(indices) > max_units:
        indices = np.sort(rng.choice(indices, max_units, replace=False))
    backgrounds = [kept, *(kept & (rng.random(kept.shape) < 0.5) for _ in range(n))]
    change = np.zeros(len(indices))
    for background in backgrounds:
        masks: list[Mask] = []
        for index in indices:
            for present in (True, False):
                one = background.copy()
                one.flat[index] = present
                masks.append(one)
        values = model.means(masks).reshape(-1, 2)
        change = np.maximum(change, np.abs(values[:, 0] - values[:, 1]))
    return Minimality(change / abs(_range(model)), tuple(indices.tolist()), threshold)


def _mask(model: Judged, circuit: Circuit | Mask) -> Mask:
    if not isinstance(circuit, Circuit):
        return model.space.checked(circuit)
    if isinstance(model.space, EdgeSpace):
        return circuit.edge_mask(model.space)
    if circuit.space != model.space:
        raise InvalidArgument(f"the circuit is of {circuit.space!r}, and this is {model.space!r}")
    return circuit.mask


def _range(model: Judged) -> float:
    found = model.full - model.empty
    if found == 0:
        raise InvalidArgument(
            f"ablating every unit leaves the metric at {model.full:g}, so nothing in this space matters to it and "
            "faithfulness has no scale; take another space, metric or ablation"
        )
    return found


def _scaled(model: Judged, masks: Sequence[Mask]) -> Floats:
    span = _range(model)
    return (model.means(masks) - model.empty) / span
