"""What a circuit is checked on: prompts that it was found on, others of their kind, other templates, and the model under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....clients.requests.prompts import Prompts
from ....protos.errors import InvalidArgument
from ....protos.model import ModelInfo
from ...ablation.reference import Reference
from ...circuits import Ablated, Ablation, Circuit, EdgeModel, EdgeSpace, Mask, ablated, edge_circuits
from ...circuits.joined import AnySpace
from ...tasks import FittedExample, FittedTask, Task, fit

__all__ = ["Bench", "Prompted", "make_bench", "task_card"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """Some examples under any circuit."""

    task: FittedTask
    judge: Ablated | EdgeModel

    @property
    def span(self) -> Floats:
        """[example]: the metric with everything less that with nothing."""
        none = np.zeros(self.judge.space.shape, dtype=bool)
        ends = self.judge.values([none, ~none])
        return ends[1] - ends[0]

    def shares(self, masks: Sequence[Mask]) -> Floats:
        """[circuit, example]: (v − F(∅)) / (F(M) − F(∅)), whose mean over examples is the faithfulness."""
        scale = self.judge.full - self.judge.empty
        if scale == 0:
            raise InvalidArgument(
                f"ablating every unit leaves the metric of {self.task.name} at {self.judge.full:g}; nothing in this space matters"
            )
        return (self.judge.values(masks) - self.judge.empty) / scale


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Everything that the checks need, made once."""

    client: Client
    info: ModelInfo
    circuit: Circuit
    found: Prompted
    """As it was found on, where the file says; else as many as were asked for."""
    held_out: Prompted
    """Of the same kind, none of them in `found`."""
    template: Prompted | None
    """With other labels than it was found on; None: the task has none, or nobody said which it was found on."""
    other: Prompted | None
    """`held_out` under another ablation; None for circuits that stand at positions, where a mean needs prompts of one length."""
    pool: tuple[FittedExample, ...]
    """All examples of the kind that fit the tokenizer and the circuit's space."""
    same_prompts: bool
    """Whether `found` is what the file's figures were measured on, to the token."""
    seed: int
    model: str

    @property
    def space(self) -> AnySpace | EdgeSpace:
        """What the circuit's members are of: its own units, or all edges of the model."""
        return self.held_out.judge.space

    @property
    def mask(self) -> Mask:
        """Its members in that space."""
        return self.circuit.mask if not isinstance(self.space, EdgeSpace) else self.circuit.edge_mask(self.space)

    @property
    def members(self) -> tuple[tuple[str, int], ...]:
        """(name, flat index in the space), best first."""
        space = self.space
        if not isinstance(space, EdgeSpace):
            return tuple((unit.name, space.index_of(unit)) for unit in self.circuit.units)
        wide = len(space.receivers)
        edges = sorted(self.circuit.edges, key=lambda edge: -edge.score)
        return tuple(
            (edge.name, space.senders.index(edge.sender) * wide + space.receivers.index(edge.receiver))
            for edge in edges
        )

    @property
    def noun(self) -> str:
        """What its members are called."""
        return "edges" if isinstance(self.space, EdgeSpace) else "units"

    def also(self, examples: Sequence[FittedExample]) -> Prompted:
        """Other examples, judged as the held-out ones are."""
        task = _part(self.held_out.task, examples)
        judge = self.held_out.judge
        source = None if isinstance(judge, EdgeModel) else judge.reference
        return _prompted(self.client, task, self.circuit, judge.ablation, source)


def task_card(task: FittedTask, seed: int = 0) -> dict[str, Any]:
    """What a circuit's card says of the prompts that it was found on: name, hash, count, seed. No texts."""
    return {"name": task.name, "hash": _hash(task), "n": len(task), "seed": seed}


def _hash(task: FittedTask) -> str:
    rows = [(e.clean, e.corrupt, e.correct, e.wrong) for e in task.examples]
    return sha256(repr(rows).encode()).hexdigest()


def make_bench(
    client: Client,
    circuit: Circuit,
    task: Task,
    *,
    found_on: Mapping[str, str],
    n: int,
    ablation: Ablation | None,
    reference: Reference | Prompts | None,
    seed: int,
    model: str,
) -> Bench:
    """Examples fitted and parted. Raises InvalidArgument where fewer than four held-out ones are left."""
    info = client.describe(model)
    made_on = circuit.origin.model_hash
    if made_on and made_on != info.model_hash:
        raise InvalidArgument(
            f"the circuit is of model {made_on[:16]}… ({circuit.origin.model}), and this is {info.model_hash[:16]}… ({info.id})"
        )
    kind = task.where(**found_on) if found_on else task
    card = circuit.card.task or {}
    first = int(card.get("seed", (circuit.origin.seeds or (0,))[0]))
    pool = _of_length(fit(kind, client, seed=first, model=model), circuit)
    count = min(int(card.get("n") or circuit.origin.n_prompts or n), max(len(pool) // 2, 1))
    known = _part(pool, pool.examples[:count])
    left = [e for e in pool.examples[count:] if e.example not in {k.example for k in known.examples}]
    if len(left) < 4:
        raise InvalidArgument(
            f"of the {len(pool)} examples that fit, {count} were used to find the circuit and {len(left)} are left to check it on; "
            "a task with more examples, or fewer labels in found_on, is needed (four at least)"
        )
    order: list[int] = np.random.default_rng(seed).permutation(len(left))[:n].tolist()
    fresh = _part(pool, [left[i] for i in order])
    kinds: Ablation = ablation or _ablation(circuit)
    means = reference if kinds == "mean" else None
    away = _elsewhere(task, found_on, client, circuit, n, seed, model)

    def prompted(some: FittedTask, how: Ablation, source: Reference | Prompts | None = None) -> Prompted:
        return _prompted(client, some, circuit, how, source)

    second: Ablation = "mean" if kinds == "patch" else "patch"
    return Bench(
        client,
        info,
        circuit,
        prompted(known, kinds, means),
        prompted(fresh, kinds, means),
        None if away is None else prompted(away, kinds, means),
        prompted(fresh, second) if circuit.space.n_tokens is None or second == "patch" else None,
        pool.examples,
        card.get("hash") == _hash(known),
        seed,
        model,
    )


def _prompted(
    client: Client, task: FittedTask, circuit: Circuit, how: Ablation, source: Reference | Prompts | None
) -> Prompted:
    """Examples under any circuit of a circuit's space."""
    prompts = (task.clean, task.corrupt, task.metrics)
    if circuit.edges:
        if how == "zero" or source is not None:
            raise InvalidArgument(
                "a circuit of edges is judged under patch, or under mean over the task's corrupt prompts; zero and reference= are of units"
            )
        return Prompted(task, edge_circuits(client, *prompts, ablation=how, model=task.model))
    options: dict[str, Any] = {"ablation": how, "reference": source, "progress": False, "model": task.model}
    return Prompted(task, ablated(client, *prompts, circuit.space, **options))


def _ablation(circuit: Circuit) -> Ablation:
    named = circuit.origin.ablation
    if named in ("patch", "mean", "zero"):
        return named
    return "patch"


def _elsewhere(
    task: Task, found_on: Mapping[str, str], client: Client, circuit: Circuit, n: int, seed: int, model: str
) -> FittedTask | None:
    """Examples that differ in every label that the circuit was found on."""
    if not found_on:
        return None
    others = tuple(e for e in task.examples if all(e.labels.get(k) not in (None, v) for k, v in found_on.items()))
    if not others:
        return None
    fitted = _of_length(fit(replace(task, examples=others), client, seed=seed, model=model), circuit, needed=False)
    return _part(fitted, fitted.examples[:n]) if len(fitted.examples) >= 4 else None


def _of_length(task: FittedTask, circuit: Circuit, *, needed: bool = True) -> FittedTask:
    """Those whose prompts the circuit's space has positions for."""
    n_tokens = circuit.space.n_tokens
    kept = tuple(e for e in task.examples if n_tokens in (None, len(e.clean)))
    if not kept and needed:
        raise InvalidArgument(
            f"the circuit stands at {n_tokens} positions, and no example of {task.name} has so many tokens"
        )
    return _part(task, kept)


def _part(task: FittedTask, examples: Sequence[FittedExample]) -> FittedTask:
    """Some examples, named anew by their place."""
    return replace(task, examples=tuple(replace(e, name=str(i)) for i, e in enumerate(examples)))
