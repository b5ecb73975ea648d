"""Is the circuit what is said of it: its claims, whether every unit is needed, and whether it is found again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from ....clients import Input, capture
from ....protos.errors import ProbewireError
from ...attribution.edges import edge_attribution
from ...circuits import (
    Claim,
    Mask,
    Unit,
    head_roles,
    minimality,
    name_movers,
    random_masks,
    rank_units,
)
from ...circuits.heads import HeadRoles
from ...tasks import FittedTask
from ..statistics import measured
from ..verdicts import Check, judged
from .bench import Bench
from .functional import BOUNDS
from .report import Untested, counted

__all__ = ["MEASURES", "claims", "interpretability"]

MEASURES = ("previous_token", "duplicate_token", "induction", "name_mover", "necessity")
MOST_UNITS = 24
PROMPTS = 4
"""That minimality is measured on."""
NEURONS = 5
CONTEXTS = 5


def interpretability(
    bench: Bench, necessity: Mapping[str, float], seeds: int
) -> tuple[list[Check], list[Untested], dict[str, Any]]:
    """Claims, minimality, and circuits of the same size found on other prompts."""
    checks, lost = claims(bench, necessity)
    few = bench.also(bench.held_out.task.examples[:PROMPTS]).judge  # two forwards a unit, half and prompt
    found = minimality(few, bench.circuit, n=1, max_units=MOST_UNITS, seed=bench.seed)
    note = f"{bench.noun} that change the answer by more than {found.threshold:.0%} of its range, alone or beside a random half"
    checks.append(
        counted(
            f"{bench.noun} that are needed",
            found.share,
            BOUNDS["minimality"],
            n=len(found.indices),
            unit="share",
            note=note,
        )
    )
    facts: dict[str, Any] = {"contexts": _contexts(bench)}
    masks = _found_again(bench, seeds)
    if len(masks) < 2:
        lost.append(Untested("found again on other prompts", "there are not enough examples for two sets of them"))
    else:
        overlaps = [_jaccard(a, b) for a, b in combinations(masks, 2)]
        drawn = random_masks(bench.space, bench.mask, n=20, seed=bench.seed, by_site=False)
        chance = float(np.mean([_jaccard(bench.mask, one) for one in drawn]))
        facts |= {"stability": overlaps, "stability_by_chance": chance}
        facts["overlap_with_the_file"] = [_jaccard(bench.mask, one) for one in masks]
        ranked = "EAP" if bench.circuit.edges else "AtP"
        value, note = (
            float(np.mean(overlaps)),
            f"Jaccard of {len(masks)} sets of prompts, ranked by {ranked}; by chance {chance:.2f}",
        )
        checks.append(
            counted(
                "found again on other prompts", value, BOUNDS["stability"], n=len(overlaps), unit="Jaccard", note=note
            )
        )
    return checks, lost, facts


def claims(bench: Bench, necessity: Mapping[str, float]) -> tuple[list[Check], list[Untested]]:
    """Each claim of the card, measured. A card without claims has none to fail, and that is told."""
    checks: list[Check] = []
    lost: list[Untested] = []
    roles: HeadRoles | None = None
    for claim in bench.circuit.card.claims:
        name = f"{claim.unit}: {claim.role}"
        try:
            if claim.measure in ("previous_token", "duplicate_token", "induction"):
                roles = roles or head_roles(bench.client, length=24, n_prompts=2, seed=bench.seed, model=bench.model)
                layer, head = _layer_and_head(Unit.parse(claim.unit))
                value = float(getattr(roles, claim.measure).values[layer, head])
                checks.append(counted(name, value, claim.min, n=2, unit=claim.measure))
            elif claim.measure == "name_mover":
                checks.append(
                    judged(
                        name, measured(_moved(bench, Unit.parse(claim.unit)), seed=bench.seed), claim.min, unit="logits"
                    )
                )
            elif claim.measure == "necessity" and claim.unit in necessity:
                checks.append(counted(name, necessity[claim.unit], claim.min, n=len(bench.held_out.task), unit="share"))
            else:
                lost.append(Untested(name, _why_not(claim, bench)))
        except (ProbewireError, IndexError) as error:
            lost.append(Untested(name, str(error)))
    if not bench.circuit.card.claims:
        lost.append(Untested("claims", "the card makes none, so there is nothing that says what its units do"))
    return checks, lost


def _why_not(claim: Claim, bench: Bench) -> str:
    if claim.measure == "necessity":
        held = claim.unit in {name for name, _ in bench.members}
        return (
            f"{claim.unit} is not among the circuit's {MOST_UNITS} best {bench.noun}"
            if held
            else f"{claim.unit} is not in the circuit"
        )
    return f"measure {claim.measure!r} is not one of {', '.join(MEASURES)}"


def _layer_and_head(unit: Unit) -> tuple[int, int]:
    kind, _, layer = unit.site.partition(".")
    if kind != "z" or unit.head is None:
        raise IndexError(f"{unit.name} is no head, and this is measured of heads")
    return int(layer), unit.head


def _moved(bench: Bench, unit: Unit) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[example]: what the head writes towards the answer by reading its token (role "io", or the answer's own place)."""
    layer, head = _layer_and_head(unit)
    task, found = bench.held_out.task, list[float]()
    for example in task.examples:
        places = example.roles.get("io") or tuple(i for i, t in enumerate(example.clean) if t in example.correct)
        if not places:
            raise IndexError("the answer is not in the prompt, so no head can move it")
        prompt = Input(token_ids=example.clean)
        moved = name_movers(bench.client, [prompt], [example.metric], [places[0]], model=bench.model)
        found.append(float(moved.score.values[layer, head]))
    return np.array(found)


def _found_again(bench: Bench, seeds: int) -> list[Mask]:
    """Circuits of the same size, each of prompts of its own."""
    size = min(8, len(bench.pool) // max(seeds, 1))
    if size < 2:
        return []
    order: list[int] = np.random.default_rng([bench.seed, 5]).permutation(len(bench.pool)).tolist()
    masks: list[Mask] = []
    for start in range(0, seeds * size, size):
        task: FittedTask = bench.also([bench.pool[i] for i in order[start : start + size]]).task
        masks.append(_best(bench, task))
    return masks


def _best(bench: Bench, task: FittedTask) -> Mask:
    """As many units by AtP, or edges by EAP, as the circuit has."""
    prompts = (task.clean, task.corrupt, task.metrics)
    if bench.circuit.edges:
        found = edge_attribution(bench.client, *prompts, model=bench.model)
        return bench.space.top(found.importance, len(bench.circuit.edges))
    scores = rank_units(bench.client, *prompts, bench.circuit.space, model=bench.model)
    return bench.circuit.space.top(scores, len(bench.circuit))


def _jaccard(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def _contexts(bench: Bench) -> dict[str, list[Any]]:
    """Neuron → where in the task's prompts it is strongest: [value, the tokens before it, the token]."""
    neurons = [unit for unit in bench.circuit.units if unit.site.startswith("mlp_act") and unit.unit is not None][
        :NEURONS
    ]
    if not neurons:
        return {}
    sites = sorted({unit.site for unit in neurons})
    examples = bench.held_out.task.examples[:8]
    inputs = [Input(token_ids=e.clean, name=e.name) for e in examples]
    run = bench.client.run(inputs, capture=[capture(site) for site in sites], model=bench.model)
    found: dict[str, list[Any]] = {}
    for unit in neurons:
        rows: list[tuple[float, list[str], str]] = []
        for example in examples:
            values = np.asarray(run.inputs[example.name][unit.site], dtype=np.float64)[:, unit.unit or 0]
            at = int(np.abs(values).argmax())
            rows.append((float(values[at]), list(example.clean_tokens[max(at - 8, 0) : at]), example.clean_tokens[at]))
        found[unit.name] = [list(row) for row in sorted(rows, key=lambda row: -abs(row[0]))[:CONTEXTS]]
    return found
