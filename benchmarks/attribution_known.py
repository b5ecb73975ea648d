"""Known results on the default model, IOI: how well estimates track patching, and how few neurons keep the behaviour.

    python benchmarks/attribution_known.py [--templates N] [--prompts N] [--pairs N] [--edges]

Prints markdown. In process, PyTorch, CPU, float32. `--edges` adds MIB's CPR and CMD over edges, which takes minutes more.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np
from machine import load_warning, machine_line

from probewire.analysis.attribution import (
    GRAPH_RULES,
    PATCHING_RULES,
    Direction,
    attribution_patching,
    edge_attribution,
    patch,
)
from probewire.analysis.circuits import Ablated, ablated, completeness, curve, edge_circuits, mib, neuron_space
from probewire.analysis.tasks import FittedTask, accuracy, fit, ioi
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

KINDS = ("resid_pre", "attn_out", "mlp_out")
RULES: Mapping[str, tuple[str, ...]] = {
    "AtP": (),
    "RelP": PATCHING_RULES,
    "RelP + AH": GRAPH_RULES,
    "LN alone": ("ln",),
}
"""Of the backward pass; "RelP" alone is LN, identity and half."""
Cells = dict[tuple[str, str], list[np.ndarray]]
"""(kind, estimate) → of each prompt [(estimate, patching), cell]."""
FLOORS = {"resid_pre": 0.78, "attn_out": 0.95, "mlp_out": 0.85}
KEPT = (0.001, 0.002, 0.005, 0.01, 0.02)
EDGE_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def main() -> None:
    """Each table in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--templates", type=int, default=4, help="sentence templates, each in both orders of names")
    parser.add_argument("--prompts", type=int, default=4, help="prompts a template, for the correlations")
    parser.add_argument("--pairs", type=int, default=8, help="prompts of one template, for the circuits")
    parser.add_argument("--edges", action="store_true")
    args = parser.parse_args()
    print(load_warning())
    print(machine_line(), end="\n\n")
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        correlations(client, args.templates, args.prompts)
        circuits(client, args.pairs)
        if args.edges:
            edges(client)


def correlations(client: Client, n_templates: int, n_prompts: int) -> None:
    """Pearson's r between each estimate and true patching in the same direction, over layers × positions."""
    pooled: dict[Direction, Cells] = {"denoise": {}, "noise": {}}
    rows: dict[Direction, list[str]] = {"denoise": [], "noise": []}
    began = time.perf_counter()
    for template in range(n_templates):
        task = fit(ioi(n=40 * n_prompts).where(template=str(template)), client, n_prompts).largest_group()
        for direction, cells in pooled.items():
            found = _cells(client, task, direction)
            for key, values in found.items():
                cells.setdefault(key, []).extend(values)
            rows[direction].append(_row(f"{template}: {len(task)} prompts of {task.lengths[0]} tokens", found))
    for direction, cells in pooled.items():
        print(f"### Correlation with activation patching, {direction}: mean over prompts (all cells pooled)\n")
        print(f"| template | {' | '.join(f'{kind} {name}' for kind in KINDS for name in RULES)} |")
        print("| --- " * (1 + len(KINDS) * len(RULES)) + "|")
        print("\n".join([*rows[direction], _row("**all**", cells)]), end="\n\n")
        for kind, floor in FLOORS.items():
            r = _mean_r(cells[kind, "RelP"])
            print(f"- {kind}: RelP {r:.3f}, floor {floor}: {'met' if r >= floor else 'NOT MET'}")
        gap = _mean_r(cells["mlp_out", "RelP"]) - _mean_r(cells["mlp_out", "AtP"])
        print(f"- mlp_out: RelP − AtP {gap:+.3f}, floor +0.4: {'met' if gap >= 0.4 else 'NOT MET'}\n")
    print(f"{time.perf_counter() - began:.0f} s\n", flush=True)


def _cells(client: Client, task: FittedTask, direction: Direction) -> Cells:
    """What each estimate and patching say of every cell, prompt by prompt."""
    prompts = (client, task.clean, task.corrupt, KINDS, task.metrics)
    exact = patch(*prompts, direction=direction).per_pair_effect
    found: Cells = {}
    for name, rules in RULES.items():
        estimate = attribution_patching(*prompts, rules=rules, direction=direction).per_pair
        for kind in KINDS:
            grids = [one.sel(site=kind).values.reshape(len(task), -1) for one in (estimate, exact)]
            found[kind, name] = list(np.stack(grids, axis=1))
    return found


def _mean_r(prompts: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.corrcoef(both)[0, 1] for both in prompts]))


def _pooled_r(prompts: Sequence[np.ndarray]) -> float:
    return float(np.corrcoef(np.concatenate(prompts, axis=1))[0, 1])


def _row(title: str, found: Cells) -> str:
    cells = [
        f"{_mean_r(found[kind, name]):.3f} ({_pooled_r(found[kind, name]):.3f})" for kind in KINDS for name in RULES
    ]
    return f"| {title} | {' | '.join(cells)} |"


def circuits(client: Client, n_pairs: int) -> None:
    """Faithfulness of the neurons with the largest |score|, all others patched from the corrupt prompt."""
    task = fit(ioi(n=40 * n_pairs).where(template="0"), client, n_pairs).largest_group()
    space = neuron_space(client.describe(), task.lengths[0])
    print(f"### Neuron circuits: {len(task)} prompts, {space.size:,} units, ablation patch, ranked by |score|\n")
    print(accuracy(client, task), end="\n\n")
    model = ablated(client, task.clean, task.corrupt, task.metrics, space)
    print(f"| kept | {' | '.join(f'{100 * f:g} %' for f in KEPT)} | all but 0.5 % |")
    print("| --- " * (2 + len(KEPT)) + "|")
    began = time.perf_counter()
    rng = np.random.default_rng(0)
    directions: tuple[Direction, ...] = ("noise", "denoise")
    for direction in directions:
        for name in ("RelP + AH", "RelP", "AtP"):
            scores = attribution_patching(
                client,
                task.clean,
                task.corrupt,
                "mlp_act",
                task.metrics,
                units=True,
                rules=RULES[name],
                direction=direction,
            ).importance
            where = "clean" if direction == "noise" else "corrupt"
            print(_circuit_row(model, f"{name}, gradient at {where}", scores.values), flush=True)
    print(_circuit_row(model, "random", rng.normal(size=space.shape)))
    print(f"\n{time.perf_counter() - began:.0f} s\n")


def _circuit_row(model: Ablated, title: str, scores: np.ndarray) -> str:
    found = curve(model, scores, fractions=KEPT, absolute=True)
    rest = completeness(model, model.space.top(scores, found.n_units[2], absolute=True))
    return f"| {title} | {' | '.join(f'{f:.2f}' for f in found.faithfulness)} | {rest:.2f} |"


def edges(client: Client) -> None:
    """CPR and CMD of rankings of the coarse graph's edges, patch ablation."""
    task = fit(ioi(n=80).where(template="0"), client, 2).largest_group()
    model = edge_circuits(client, task.clean, task.corrupt, task.metrics)
    print(f"### Edges: {len(task)} prompts, {model.space.size:,} edges, fractions {EDGE_FRACTIONS}\n")
    print("| ranking | CPR | CMD |\n| --- | --- | --- |")
    rankings = {"random": np.random.default_rng(0).normal(size=model.space.shape)}
    prompts = (client, task.clean, task.corrupt, task.metrics)
    rankings["EAP"] = edge_attribution(*prompts).importance.values
    rankings["EAP-IG"] = edge_attribution(*prompts, steps=5).importance.values
    rankings["EAP, RelP's rules"] = edge_attribution(*prompts, rules=PATCHING_RULES).importance.values
    for name, scores in rankings.items():
        measured = mib(model, scores, fractions=EDGE_FRACTIONS)
        print(f"| {name} | {measured.cpr:.3f} | {measured.cmd:.3f} |", flush=True)


if __name__ == "__main__":
    main()
