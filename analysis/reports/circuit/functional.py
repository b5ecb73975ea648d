"""Does the circuit do what its file says, on prompts it has not seen, better than chance, in other words, under another ablation?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...circuits import Mask, random_masks
from ...library.difference import spearman
from ...tasks import FittedExample
from ..statistics import Figure, measured
from ..verdicts import Check, judged
from .bench import Bench, Floats, Prompted
from .report import Untested, counted

__all__ = ["BOUNDS", "functional", "necessity", "reproduced", "robust"]

BOUNDS = {
    "reproduced": 0.05,
    "held out": 0.8,
    "template": 0.7,
    "rest": 0.2,
    "p": 0.05,
    "ablations": 0.6,
    "edge": 0.8,
    "minimality": 0.8,
    "stability": 0.5,
}
MOST_UNITS = 24
"""Of a circuit that are taken out one by one."""
EDGES = 3
"""Examples of each kind of edge case."""


def reproduced(bench: Bench) -> tuple[list[Check], list[Untested]]:
    """The file's own figures, measured again: within .05 on its prompts, or within the interval on others of their kind."""
    origin, mask = bench.circuit.origin, bench.mask
    checks: list[Check] = []
    lost: list[Untested] = []
    for name, told, kept in (("faithfulness", origin.faithfulness, mask), ("completeness", origin.completeness, ~mask)):
        if told is None:
            lost.append(Untested(f"{name} of the file", "the file does not say what it was"))
            continue
        shares = bench.found.shares([kept])[0]
        if bench.same_prompts:
            gap = abs(float(shares.mean()) - told)
            checks.append(
                counted(
                    f"{name} of the file",
                    gap,
                    BOUNDS["reproduced"],
                    n=len(shares),
                    worse="higher",
                    unit="difference",
                    note=f"{told:.3f} in the file; the same prompts",
                )
            )
            continue
        figure = measured(shares, seed=bench.seed)
        low, high = _distance(figure, told)
        within = replace(figure, value=abs(figure.value - told), low=low, high=high)
        note = f"{told:.3f} in the file; its prompts are not known, so others of their kind"
        checks.append(
            judged(f"{name} of the file", within, BOUNDS["reproduced"], worse="higher", unit="difference", note=note)
        )
    return checks, lost


def _distance(figure: Figure, told: float) -> tuple[float, float]:
    """Interval of |mean − told|."""
    low, high = figure.low - told, figure.high - told
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def functional(bench: Bench, n_random: int) -> tuple[list[Check], list[Untested], dict[str, Any]]:
    """The task needs the space; the circuit keeps it on held-out prompts, the rest does not, and random ones do worse."""
    mask, fresh = bench.mask, bench.held_out
    by_site = not bench.circuit.edges  # a late sender has one edge or two, and would be drawn as itself
    drawn = random_masks(bench.space, mask, n=n_random, seed=bench.seed, by_site=by_site)
    shares = fresh.shares([mask, ~mask, *drawn])
    f, random = shares[0], shares[2:].mean(axis=1)
    p = (1 + int((random >= f.mean()).sum())) / (1 + len(random))
    over = "above 1: it does more than the whole model" if f.mean() > 1.2 else ""
    checks = [
        judged("the space matters, F(M) − F(∅)", measured(fresh.span, seed=bench.seed), 0.0, unit="metric"),
        judged(
            "faithful on held-out prompts", measured(f, seed=bench.seed), BOUNDS["held out"], unit="share", note=over
        ),
        judged(
            "the rest does not do it",
            measured(shares[1], seed=bench.seed),
            BOUNDS["rest"],
            worse="higher",
            unit="share",
        ),
        counted(
            f"better than {n_random} random circuits {'by site' if by_site else 'of as many edges'}",
            p,
            BOUNDS["p"],
            n=n_random,
            worse="higher",
            unit="p",
        ),
    ]
    return checks, [], {"random": random.tolist(), "faithfulness": float(f.mean())}


def robust(bench: Bench) -> tuple[list[Check], list[Untested], dict[str, Any]]:
    """Other words, another ablation, and the examples at the edges."""
    checks: list[Check] = []
    lost: list[Untested] = []
    facts: dict[str, Any] = {}
    mask = bench.mask
    alike = f"its {bench.noun} matter alike under two ablations"
    if bench.template is None:
        why = "say which labels it was found on (found_on), of a task whose other examples differ in them"
        lost.append(Untested("faithful in another template", why))
    else:
        figure = measured(bench.template.shares([mask])[0], seed=bench.seed)
        checks.append(judged("faithful in another template", figure, BOUNDS["template"], unit="share"))
    own = necessity(bench.held_out, bench)
    facts["necessity"] = own
    other = None if bench.other is None else necessity(bench.other, bench)
    rank = None if other is None else spearman(list(own.values()), list(other.values()))
    if rank is None:
        lost.append(Untested(alike, f"it takes three {bench.noun}, and a space without positions"))
    else:
        both = f"{bench.held_out.judge.ablation} and {bench.other.judge.ablation if bench.other else ''}"
        checks.append(
            counted(
                alike,
                rank,
                BOUNDS["ablations"],
                n=len(own),
                unit="rank correlation",
                note=both,
            )
        )
    edge = _edge_cases(bench)
    checks.append(
        counted("keeps the answer at the edges", *edge[:1], BOUNDS["edge"], n=edge[1], unit="share", note=edge[2])
    )
    return checks, lost, facts


def necessity(on: Prompted, bench: Bench) -> dict[str, float]:
    """Name of a unit or edge → what the faithfulness loses without it, for the best of them."""
    mask, members = bench.mask, bench.members[:MOST_UNITS]
    masks: list[Mask] = [mask]
    for _, index in members:
        one = mask.copy()
        one.flat[index] = False
        masks.append(one)
    f = on.shares(masks).mean(axis=1)
    return {name: float(f[0] - value) for (name, _), value in zip(members, f[1:], strict=True)}


def _edge_cases(bench: Bench) -> tuple[float, int, str]:
    """(share of chosen examples where the circuit answers as the model does, how many, which they are)."""
    fresh = {e.example for e in bench.found.task.examples}
    pool = [e for e in bench.pool if e.example not in fresh]

    def length(example: FittedExample) -> int:
        return len(example.clean)

    def rarity(example: FittedExample) -> int:
        return max(example.correct)  # merges are numbered as they were learnt, commonest first

    chosen: dict[Any, FittedExample] = {}
    for some in (
        sorted(pool, key=length)[:EDGES],
        sorted(pool, key=length)[-EDGES:],
        sorted(pool, key=rarity)[-EDGES:],
    ):
        chosen |= {e.example: e for e in some}
    values = _answers(bench, list(chosen.values()))
    right = values[0] > 0
    if not right.any():
        return 0.0, len(right), "the model itself answers none of them"
    kept = float((values[1][right] > 0).mean())
    return kept, int(right.sum()), f"{EDGES} shortest, longest and rarest answers that the model has right"


def _answers(bench: Bench, examples: Sequence[FittedExample]) -> Floats:
    """[whole model and circuit, example]: the metric."""
    mask = bench.mask
    return bench.also(examples).judge.values([np.ones_like(mask), mask])
