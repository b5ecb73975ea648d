"""Checking a circuit: reproduced, functional, robust, confirmed elsewhere, with a number, an interval and a bound for each check."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....clients import Client
from ....clients.requests.prompts import Prompts
from ....protos.errors import InvalidArgument
from ...ablation.reference import Reference
from ...circuits import Ablation, Circuit
from ...tasks import Task, agreement, capitals, greater_than, ioi
from ..verdicts import Check
from .bench import Bench, make_bench
from .functional import functional, reproduced, robust
from .interpretability import interpretability
from .performance import performance
from .report import Part, QaReport
from .safety import SafetyProbe, safety

__all__ = ["TASKS", "circuit_qa"]

TASKS = {"ioi": ioi, "greater_than": greater_than, "agreement": agreement, "capitals": capitals}
"""Those that a circuit's `origin.task` may name."""


def circuit_qa(
    client: Client,
    circuit: Circuit,
    *,
    task: Task | None = None,
    found_on: Mapping[str, str] | None = None,
    n: int = 16,
    n_random: int = 20,
    seeds: int = 3,
    ablation: Ablation | None = None,
    reference: Reference | Prompts | None = None,
    safety_sets: Mapping[str, SafetyProbe] | None = None,
    who: str = "",
    seed: int = 0,
    model: str = "",
) -> QaReport:
    """A report of every check, and the level that the circuit reaches (LEVELS in report.py).

    `task`: examples of its behaviour, more than it was found on; default the shipped one that its origin names. `found_on`:
    the labels of those it was found on ({"template": "0"}), so that other ones can be told. `n` held-out prompts,
    `n_random` random circuits (20 at least, for p < .05), `seeds` sets of prompts to find it again on. `ablation`: default
    the file's. Of a circuit of edges its edges are checked, by `edge_circuits`: a forward a node for every circuit and prompt. `who`: a report of level 3 on its card by another, or on another backend, is what level 4 takes.
    Raises InvalidArgument for a circuit of another model, for edges of heads, and for too few examples.
    """
    if n_random < 20:
        raise InvalidArgument(f"n_random must be 20 or more, for p < .05 takes that many; got {n_random}")
    started = time.perf_counter()
    examples = task or _shipped(circuit)
    options: dict[str, Any] = {"n": n, "ablation": ablation, "reference": reference, "seed": seed, "model": model}
    bench = make_bench(client, circuit, examples, found_on=dict(found_on or {}), **options)
    again, lost_again = reproduced(bench)
    works, lost_works, random = functional(bench, n_random)
    robustly, lost_robustly, needed = robust(bench)
    meaning, lost_meaning, told = interpretability(bench, needed["necessity"], seeds)
    harmless, lost_harmless, changes = safety(bench, safety_sets, n_random)
    facts: dict[str, Any] = {"performance": performance(bench), **random, **needed, **told, "safety": changes}
    facts["seconds"] = time.perf_counter() - started
    return QaReport(
        circuit.id,
        circuit.card.name,
        {
            "reproduced": _of("reproduced", again),
            "functional": _of("functional", works),
            "robust": _of("robust", robustly),
            "interpretability": _of("interpretability", meaning),
            "safety": _of("safety", harmless),
        },
        {
            "reproduced": tuple(lost_again),
            "functional": tuple(lost_works),
            "robust": tuple(lost_robustly),
            "interpretability": tuple(lost_meaning),
            "safety": tuple(lost_harmless),
        },
        facts,
        _about(bench, examples, n_random, seeds),
        _confirmed(circuit, bench, who),
    )


def _of(part: Part, checks: Sequence[Check]) -> tuple[Check, ...]:
    return tuple(replace(check, suite=part) for check in checks)


def _shipped(circuit: Circuit) -> Task:
    name = circuit.origin.task
    if name not in TASKS:
        raise InvalidArgument(f"the circuit is of task {name!r}; give task= (shipped are {', '.join(TASKS)})")
    return TASKS[name]()


def _about(bench: Bench, task: Task, n_random: int, seeds: int) -> dict[str, Any]:
    info = bench.info
    return {
        "model": info.id,
        "model_hash": info.model_hash,
        "backend": info.backend,
        "dtype": info.dtype,
        "device": info.device,
        "versions": dict(info.versions),
        "task": task.name,
        "ablation": bench.held_out.judge.ablation,
        "held_out": len(bench.held_out.task),
        "found_on": len(bench.found.task),
        "same_prompts": bench.same_prompts,
        "random_circuits": n_random,
        "sets_of_prompts": seeds,
        "seed": bench.seed,
    }


def _confirmed(circuit: Circuit, bench: Bench, who: str) -> tuple[str, ...]:
    """Entries of level 3 and above on the card that are of another backend, or of somebody else."""
    found: list[str] = []
    for entry in circuit.card.validation:
        elsewhere = entry.get("backend") not in ("", None, bench.info.backend)
        another = bool(who) and entry.get("who") not in ("", None, who)
        if int(entry.get("level", 0)) >= 3 and (elsewhere or another):
            found.append(f"{entry.get('who') or 'somebody'} on {entry.get('backend')}, {entry.get('time')}")
    return tuple(found)
