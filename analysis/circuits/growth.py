"""How circuits grow with scale: the same behaviour, ranking, ablation and target in models of several sizes.

Circuit size depends on the target, on the ablation and on the prompts; it is known to grow with the model and to fluctuate
(Tigges et al. 2024). Nothing here compares across ablations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import FailedPrecondition, InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ..tasks import FittedTask, Score, Task, accuracy, fit
from .ablated import Ablation, ablated
from .circuit import Circuit
from .discovery import prune_ranking
from .faithfulness import RandomControl, mib, random_control, random_masks
from .heads import HeadRoles, head_roles
from .ranking import Rank, rank_units
from .space import Unit, head_space, neuron_space

__all__ = ["Grown", "Growth", "Reuse", "Slope", "growth", "n_parameters", "reuse"]

FIFTHS = 5
ROLES = ("previous_token", "duplicate_token", "induction")
ROLE_FLOOR = 0.3
"""Share of attention from which a head is said to have a role."""
CAN_DO = 0.8
Made = Callable[[Client, str, int], FittedTask]
"""(client, model, seed) → examples, for tasks that are no texts."""


@dataclass(frozen=True, slots=True, eq=False)
class Grown:
    """One model's circuits, one a seed of prompts."""

    name: str
    parameters: int
    """Of its weights; norms and biases are not counted."""
    scores: tuple[Score, ...]
    """How well it does the task, a seed each."""
    circuits: tuple[Circuit, ...]
    """None of them where the model cannot do the task."""
    controls: tuple[RandomControl, ...]
    cpr: tuple[float, ...]
    cmd: tuple[float, ...]
    depths: tuple[int, ...]
    """Units of all circuits in each fifth of the depth."""
    roles: Mapping[str, str]
    """Head of a circuit → its role, or "other"."""

    @property
    def can_do(self) -> bool:
        """Whether it has the task right in eight of ten prompts at every seed."""
        return min(score.accuracy for score in self.scores) >= CAN_DO

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each circuit."""
        return tuple(len(circuit) for circuit in self.circuits)

    @property
    def role_depths(self) -> frozenset[tuple[str, int]]:
        """Role × fifth of the depth, of the circuits' heads."""
        layers = len(self.circuits[0].space.sites) if self.circuits else 1
        return frozenset(
            (role, _fifth(Unit.parse(name), layers)) for name, role in self.roles.items() if role != "other"
        )

    def __repr__(self) -> str:
        right = np.mean([score.accuracy for score in self.scores])
        if not self.circuits:
            return f"Grown({self.name}: {right:.0%} right, cannot do it)"
        f = [circuit.origin.faithfulness or 0.0 for circuit in self.circuits]
        p = max(control.p_value for control in self.controls)
        areas = f", CPR {np.mean(self.cpr):.2f}, CMD {np.mean(self.cmd):.2f}" if self.cpr else ""
        return (
            f"Grown({self.name}: {self.parameters:,} parameters, {right:.0%} right, {list(self.sizes)} of {self.circuits[0].space.size:,} units, "
            f"faithfulness {min(f):.2f} to {max(f):.2f}, random p ≤ {p:.3f}{areas})"
        )


@dataclass(frozen=True, slots=True)
class Slope:
    """Of log units against log parameters, over models: least squares, Student's interval with models − 2 degrees of freedom."""

    value: float
    low: float
    high: float
    models: int

    @property
    def told(self) -> str:
        """The sentence that a report prints."""
        if not np.isfinite(self.low):
            return f"{self.models} models give a difference and no slope"
        if self.low <= 0 <= self.high:
            return f"no slope distinguishable from 0: {self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.models} models"
        return (
            f"units grow as parameters^{self.value:.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.models} models"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Growth:
    """The circuits of every model, and how they compare."""

    models: tuple[Grown, ...]
    unit: str
    target: float
    ablation: str
    rank: str

    @property
    def slope(self) -> Slope:
        """Over the models that can do the task. Raises InvalidArgument for fewer than two."""
        able = [one for one in self.models if one.circuits]
        if len(able) < 2:
            raise InvalidArgument(f"{len(able)} of {len(self.models)} models can do the task; a comparison needs two")
        x = np.log([float(one.parameters) for one in able])
        return _slope(x, np.log([float(np.mean(one.sizes)) for one in able]))

    @property
    def role_overlap(self) -> dict[tuple[str, str], float]:
        """(model, model) → Jaccard of {role × fifth of the depth}."""
        able = [one for one in self.models if one.circuits]
        return {(a.name, b.name): _jaccard(a.role_depths, b.role_depths) for a, b in combinations(able, 2)}

    def __repr__(self) -> str:
        lines = [
            f"Growth of circuits of {self.unit}s, faithfulness ≥ {self.target:g}, {self.ablation} ablation, ranked by {self.rank}"
        ]
        lines += [f"  {one!r}" for one in self.models]
        if sum(bool(one.circuits) for one in self.models) >= 2:
            lines.append(f"  {self.slope.told}")
            lines += [
                f"  roles by depth, {a} and {b}: Jaccard {value:.2f}" for (a, b), value in self.role_overlap.items()
            ]
        return "\n".join(lines)


def growth(
    clients: Mapping[str, Client | tuple[Client, str]],
    task: Task | Made,
    *,
    unit: Literal["head", "neuron"] = "head",
    target: float = 0.8,
    rank: Rank = "relp",
    ablation: Ablation = "patch",
    n: int = 64,
    seeds: int = 3,
    n_random: int = 20,
    areas: bool = True,
    vocabulary: Sequence[int] = (),
) -> Growth:
    """For each model and each of `seeds` sets of `n` prompts, the fewest best-ranked units that reach `target`.

    `clients`: name → a client, or (client, model). `task`: fitted to each tokenizer, or what makes examples. A model that has it
    right in fewer than eight of ten prompts cannot do it and has no circuit. `areas`: CPR and CMD too (forwards over all of
    the ranking). `vocabulary`: token ids that roles are measured on (`head_roles`). Raises InvalidArgument for no models.
    """
    if not clients:
        raise InvalidArgument("growth needs a model at least, and three for a slope")
    if unit not in ("head", "neuron"):
        raise InvalidArgument(f"unit={unit!r}; allowed: head, neuron (edges have no ranking that can be pruned here)")
    found = [
        _grown(
            name,
            *(given if isinstance(given, tuple) else (given, "")),
            task,
            unit,
            target,
            rank,
            ablation,
            n,
            seeds,
            n_random,
            areas,
            vocabulary,
        )
        for name, given in clients.items()
    ]
    return Growth(tuple(found), unit, target, ablation, rank)


def _grown(
    name: str,
    client: Client,
    model: str,
    task: Task | Made,
    unit: str,
    target: float,
    rank: Rank,
    ablation: Ablation,
    n: int,
    seeds: int,
    n_random: int,
    areas: bool,
    vocabulary: Sequence[int],
) -> Grown:
    info = client.describe(model)
    sets = [
        fit(task, client, n, seed=s, model=model) if isinstance(task, Task) else task(client, model, s)
        for s in range(seeds)
    ]
    scores = tuple(accuracy(client, one) for one in sets)
    empty = Grown(name, n_parameters(info, client.weight_names(model)), scores, (), (), (), (), (0,) * FIFTHS, {})
    if not empty.can_do:
        return empty
    space = head_space(info) if unit == "head" else neuron_space(info)
    circuits: list[Circuit] = []
    controls: list[RandomControl] = []
    cpr: list[float] = []
    cmd: list[float] = []
    for number, one in enumerate(sets):
        prompts = (one.clean, one.corrupt, one.metrics)
        ranking = rank_units(client, *prompts, space, rank=rank, model=model)
        judge = ablated(client, *prompts, space, ablation=ablation, progress=False, model=model)
        pruned = prune_ranking(judge, ranking, target=target, method=rank)
        circuits.append(
            pruned.circuit.with_origin(model=info.id, model_hash=info.model_hash, task=one.name, seeds=(number,))
        )
        controls.append(random_control(judge, pruned.circuit, n=n_random))
        if areas:
            found = mib(judge, ranking, fractions=_fractions(space.size))
            cpr.append(found.cpr)
            cmd.append(found.cmd)
    depths = Counter(_fifth(u, info.n_layers) for circuit in circuits for u in circuit.units)
    roles = _roles(client, circuits, model, vocabulary) if unit == "head" else {}
    histogram = tuple(depths[i] for i in range(FIFTHS))
    return Grown(
        name, empty.parameters, scores, tuple(circuits), tuple(controls), tuple(cpr), tuple(cmd), histogram, roles
    )


def _fractions(size: int) -> tuple[float, ...]:
    """Of all units: none, one, and on a log scale to all."""
    sizes = np.unique(np.geomspace(1, size, 8).astype(int))
    return tuple((np.concatenate([[0], sizes]) / size).tolist())


def _roles(client: Client, circuits: list[Circuit], model: str, vocabulary: Sequence[int]) -> dict[str, str]:
    """Head of any circuit → the role with the largest score, where that is large enough."""
    info = client.describe(model)
    pool = vocabulary or range(info.vocab_size // 100, info.vocab_size)
    length = min(16, len(pool) // 2)
    found: HeadRoles = head_roles(client, length=length, n_prompts=4, vocabulary=pool, model=model)
    roles: dict[str, str] = {}
    for unit in dict.fromkeys(u for circuit in circuits for u in circuit.units):
        layer = Site.parse(unit.site).layer or 0
        values = {role: float(getattr(found, role).values[layer, unit.head or 0]) for role in ROLES}
        best = max(values, key=lambda role: values[role])
        roles[unit.name] = best if values[best] >= ROLE_FLOOR else "other"
    return roles


def n_parameters(info: ModelInfo, names: Iterable[str] = ()) -> int:
    """Of the weights that take deltas, where the model lists them; else of a gated transformer of its sizes.

    `names` (`client.weight_names`) tell whether the head is the embedding, which then counts once.
    """
    if info.weights:
        paths, own = {weight.name: f"{weight.path}.weight" for weight in info.weights}, set(names)
        tied = paths.get("w_embed") in own and paths.get("w_unembed") not in own
        return sum(one.d_in * one.d_out for one in info.weights if not (tied and one.name == "w_unembed"))
    attention = 2 * info.d_model * (info.n_heads + info.n_kv_heads) * info.d_head
    layer = attention + 3 * info.d_model * info.d_mlp * max(info.n_experts, 1)
    return info.n_layers * layer + info.vocab_size * info.d_model


def _fifth(unit: Unit, n_layers: int) -> int:
    """Which fifth of the depth."""
    return min((Site.parse(unit.site).layer or 0) * FIFTHS // n_layers, FIFTHS - 1)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> Slope:
    value = float(np.polyfit(x, y, 1)[0])
    free = len(x) - 2
    if free < 1:
        return Slope(value, float("-inf"), float("inf"), len(x))
    centred = x - x.mean()
    residual = y - y.mean() - value * centred
    error = float(np.sqrt((residual**2).sum() / free / (centred**2).sum()))
    try:
        t: Any = import_module("scipy.stats").t
    except ImportError as error_:
        raise FailedPrecondition("the interval of a slope needs scipy: pip install 'probewire[analysis]'") from error_
    half = float(t.ppf(0.975, free)) * error
    return Slope(value, value - half, value + half, len(x))


def _jaccard(a: frozenset[Any], b: frozenset[Any]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0  # two models without a role agree on nothing


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much two circuits of one model share, beside random sets of the same sizes in the same layers."""

    a: str
    b: str
    jaccard: float
    expected: float
    """Mean over random circuits."""
    p_value: float
    """Share of random pairs that share as much."""

    @property
    def ratio(self) -> float:
        """Observed ÷ expected."""
        return self.jaccard / self.expected if self.expected else float("inf") if self.jaccard else 1.0


def reuse(circuits: Mapping[str, Circuit], *, n: int = 1000, seed: int = 0) -> list[Reuse]:
    """Every pair of circuits of one model and space. Raises InvalidArgument for others."""
    if len({(one.space, one.origin.model_hash) for one in circuits.values()}) > 1:
        raise InvalidArgument("reuse is between circuits of one model over one space")
    found: list[Reuse] = []
    for (a, one), (b, other) in combinations(circuits.items(), 2):
        observed = _overlap(one.mask, other.mask)
        drawn = zip(
            random_masks(one.space, one.mask, n=n, seed=seed),
            random_masks(other.space, other.mask, n=n, seed=seed + 1),
            strict=True,
        )
        chance = np.array([_overlap(x, y) for x, y in drawn])
        p = (1 + int((chance >= observed).sum())) / (1 + n)
        found.append(Reuse(a, b, observed, float(chance.mean()), p))
    return found


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(int((a | b).sum()), 1))
