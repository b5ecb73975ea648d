"""Does taking a circuit away change what nobody wants changed, beyond random circuits of its size?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....clients import Input
from ....clients.requests.prompts import Prompt
from ....protos.metrics import Metric, Target
from ...ablation.reference import measure, tokenized
from ...attribution.taylor import patterns
from ...circuits import edge_circuits, random_masks
from ...circuits.ablated import ablation_hooks, mean_source
from ..verdicts import Check
from .bench import Bench
from .report import Untested, counted

__all__ = ["SafetyProbe", "safety"]

INPUTS_A_REQUEST = 16


@dataclass(frozen=True, slots=True)
class SafetyProbe:
    """Prompts and what is measured at their end: refusal, a pronoun's log-odds, mass on words that nobody wants."""

    prompts: Sequence[Prompt]
    metric: Metric | Sequence[Metric]
    """One for all, or one a prompt."""


def safety(
    bench: Bench, probes: Mapping[str, SafetyProbe] | None, n_random: int
) -> tuple[list[Check], list[Untested], dict[str, Any]]:
    """|mean change| of each measure when the circuit is replaced by its mean, against random circuits of its size."""
    if not probes:
        return [], [Untested("side effects", "no sets were given (safety=)")], {}
    if bench.circuit.space.n_tokens is not None:
        return [], [Untested("side effects", "the circuit stands at the positions of its task's prompts")], {}
    checks: list[Check] = []
    facts: dict[str, Any] = {}
    for name, probe in probes.items():
        own, random = _changes(bench, probe, n_random)
        p = (1 + int((np.abs(random) >= abs(own)).sum())) / (1 + len(random))
        facts[name] = {"change": own, "random": random.tolist()}
        note = f"changes by {own:+.3g} without the circuit; random ones by at most {np.abs(random).max():.3g}"
        checks.append(counted(f"{name}: no more than random circuits do", p, 0.05, n=n_random, unit="p", note=note))
    return checks, [], facts


def _changes(
    bench: Bench, probe: SafetyProbe, n_random: int
) -> tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """Mean change without the circuit, and [draw] without random ones."""
    named = list(tokenized(bench.client, list(probe.prompts), model=bench.model).values())
    metrics = list(probe.metric) if isinstance(probe.metric, Sequence) else [probe.metric] * len(named)
    if bench.circuit.edges:
        return _without_edges(bench, named, metrics, n_random)
    space, mask = bench.circuit.space, bench.circuit.mask
    reference = measure(bench.client, named, patterns(space.sites), model=bench.model)
    gone = [~mask, *(~one for one in random_masks(space, mask, n=n_random, seed=bench.seed))]
    plans = [[], *(ablation_hooks(space, one, mean_source(reference, 1)) for one in gone)]
    total = np.zeros(len(plans))
    for start in range(0, len(named), INPUTS_A_REQUEST):
        some = named[start : start + INPUTS_A_REQUEST]
        targets = [Target(metric, (item.name,)) for item, metric in zip(some, metrics[start:], strict=False)]
        sweep = bench.client.sweep(some, targets, plans, progress=False, model=bench.model)
        for item in some:
            total += np.asarray(sweep.array(item.name).values, dtype=np.float64)
    mean = total / len(named)
    return float(mean[1] - mean[0]), mean[2:] - mean[0]


def _without_edges(
    bench: Bench, named: Sequence[Input], metrics: Sequence[Metric], n_random: int
) -> tuple[float, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    """The same of edges: those that are taken away carry their senders' means over the probe's prompts."""
    model = edge_circuits(bench.client, list(named), list(named), list(metrics), ablation="mean", model=bench.model)
    mask = bench.mask
    random = random_masks(bench.space, mask, n=n_random, seed=bench.seed, by_site=False)
    mean = model.means([np.ones_like(mask), ~mask, *(~one for one in random)])
    return float(mean[1] - mean[0]), mean[2:] - mean[0]
