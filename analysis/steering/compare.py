"""Which tokens to steer: strategies compared at equal cost, beside random directions and vectors of shuffled pairs.

Comparing at equal strength a token says nothing, since more tokens are simply more; so strategies are held against each
other at equal total ‖change‖, or at equal KL(base ‖ steered). After Tan et al. 2024 and Braun et al. 2025, prompts that
move the wrong way are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...clients import Add, Client, Hook, Norm, Tensor, capture, hook
from ...clients.requests.prompts import Prompt, to_input
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ..reports.at_ends import Measured, measure
from .comparison import Continued, SteeringComparison
from .continuations import continued
from .positions import STRATEGIES, positions_of, semantic_density
from .vectors import FittedVector

__all__ = ["BUDGETS", "compare_positions"]

Floats = NDArray[np.float64]
Budget = Literal["none", "l2", "kl"]
BUDGETS: tuple[Budget, ...] = ("none", "l2", "kl")
STEPS = 8
"""Halvings of the strength that an equal KL is looked for in."""
MOST = 8.0
"""The strength at which a strategy that has not reached the KL yet is given up."""


def compare_positions(
    client: Client,
    vector: FittedVector | ArrayLike,
    site: str,
    prompts: Sequence[Prompt],
    metric: Metric | Sequence[Metric],
    *,
    strategies: Sequence[str] = STRATEGIES,
    strengths: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    budget: Budget = "l2",
    n_random: int = 24,
    control_at: float | None = None,
    n_new: int = 0,
    seed: int = 0,
    model: str = "",
) -> SteeringComparison:
    """Steer each prompt's tokens by each strategy and strength, and measure it at the prompt's end.

    `vector` [width] is taken as a direction; strength 1 adds the mean ‖h‖ of the site over the prompts' tokens (but the
    first). `budget`: "none", so much at each token; "l2", divided by √tokens; "kl", `strengths` are mean KL that each
    strategy is scaled to. `n_random` directions, and a third as many vectors of shuffled pairs where `vector` is a
    FittedVector, are added with strength `control_at` (none: the strength nearest .5). `n_new`: tokens to continue each
    prompt by at that strength, to be read by the base. Raises InvalidArgument for a budget or strategy that there is not.
    """
    if budget not in BUDGETS or not strengths or min(strengths) <= 0:
        raise InvalidArgument(
            f"budget is one of {', '.join(BUDGETS)} (got {budget!r}); strengths are above 0, got {list(strengths)}"
        )
    raw = vector.direction if isinstance(vector, FittedVector) else np.asarray(vector, dtype=np.float64)
    direction = raw / np.linalg.norm(raw)
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * len(prompts)
    lengths = [len(client.tokenize(prompt, model=model).token_ids) for prompt in prompts]
    density: list[Floats | None] = [None] * len(prompts)
    if any(name.startswith("dense") for name in strategies):
        pairs = zip(prompts, metrics, strict=True)
        density = [semantic_density(client, prompt, direction, site, one, model=model) for prompt, one in pairs]
    chosen = {
        name: [positions_of(name, n, own) for n, own in zip(lengths, density, strict=True)] for name in strategies
    }
    at_prompt = [name for name in strategies if name != "generated"]
    if not at_prompt:
        raise InvalidArgument(
            "`generated` steers what follows the prompt, where nothing is measured; name another strategy too"
        )
    bench = _Bench(client, prompts, metrics, site, _unit(client, prompts, site, model), chosen, budget != "none", model)
    used = np.array(
        [[bench.strength_for_kl(direction, name, k) if budget == "kl" else k for k in strengths] for name in at_prompt]
    )
    plans = [bench.plan(direction, name, k) for name, row in zip(at_prompt, used, strict=True) for k in row]
    found = bench.measured([[], *plans])
    shape = (len(at_prompt), len(strengths), len(prompts))
    shifts, kl = (part[1:].reshape(shape) for part in (found.values - found.values[0], found.kl))
    column = int(np.argmin(np.abs(np.asarray(strengths) - (0.5 if control_at is None else control_at))))
    rng = np.random.default_rng(seed)
    random = _directions(rng.normal(size=(n_random, len(direction))))
    shuffled = (
        _directions([vector.shuffled(rng) for _ in range(n_random // 3)])
        if n_random >= 3 and isinstance(vector, FittedVector)
        else random[:0]
    )
    controls = [bench.mean_shifts(others, at_prompt, used[:, column], found.values[0]) for others in (random, shuffled)]
    texts: dict[str, Continued] = {}
    if n_new:
        hooks = {name: bench.plan(direction, name, k) for name, k in zip(at_prompt, used[:, column], strict=True)}
        if "generated" in strategies:
            hooks["generated"] = [
                hook(site, bench.add(direction, float(np.asarray(strengths)[column])), phase="generated")
            ]
        texts = continued(client, prompts, {"base": [], **hooks}, n_new=n_new, model=model)
    return SteeringComparison(
        site=site, budget=budget, strategies=tuple(at_prompt), strengths=tuple(strengths), used=used, unit=bench.unit, base=found.values[0],
        shifts=shifts, kl=kl, control_column=column, random=controls[0], shuffled=controls[1], continued=texts,
        n_tokens={name: float(np.mean([len(own) for own in chosen[name]])) for name in at_prompt},
        told=str(vector) if isinstance(vector, FittedVector) else "",
    )  # fmt: skip


class _Bench:
    """Prompts, their steered tokens, and what a token is given."""

    def __init__(
        self,
        client: Client,
        prompts: Sequence[Prompt],
        metrics: Sequence[Metric],
        site: str,
        unit: float,
        chosen: dict[str, list[tuple[int, ...]]],
        shared: bool,
        model: str,
    ) -> None:
        self.client, self.prompts, self.metrics, self.site = client, prompts, metrics, site
        self.unit, self.chosen, self.shared, self.model = unit, chosen, shared, model

    def add(self, direction: Floats, strength: float) -> Add:
        """The edit of one token."""
        return Add(Tensor.of((direction * self.unit).astype(np.float32)), strength)

    def plan(self, direction: Floats, strategy: str, strength: float) -> list[Hook]:
        """A hook a prompt; with a shared budget its tokens divide the change."""
        found: list[Hook] = []
        for index, own in enumerate(self.chosen[strategy]):
            each = strength / np.sqrt(len(own)) if self.shared else strength
            found.append(hook(self.site, self.add(direction, float(each)), positions=own, inputs=(str(index),)))
        return found

    def measured(self, plans: list[list[Hook]], *, kl: bool = True) -> Measured:
        """Every plan on every prompt."""
        return measure(self.client, self.prompts, self.metrics, plans, kl=kl, model=self.model)

    def mean_shifts(self, directions: Floats, strategies: Sequence[str], strengths: Floats, base: Floats) -> Floats:
        """[strategy, direction]: mean shift of the metric."""
        plans = [self.plan(one, name, k) for name, k in zip(strategies, strengths, strict=True) for one in directions]
        if not plans:
            return np.zeros((len(strategies), 0))
        shifts = (self.measured(plans, kl=False).values - base).mean(axis=1)
        return shifts.reshape(len(strategies), len(directions))

    def strength_for_kl(self, direction: Floats, strategy: str, target: float) -> float:
        """The strength at which the mean KL is `target`, by bisection; MOST where it is not reached."""
        low, high = MOST / 2**STEPS, MOST
        for _ in range(STEPS):
            middle = float(np.sqrt(low * high))
            mean = float(self.measured([self.plan(direction, strategy, middle)]).kl.mean())
            low, high = (middle, high) if mean < target else (low, middle)
        return float(np.sqrt(low * high))


def _unit(client: Client, prompts: Sequence[Prompt], site: str, model: str) -> float:
    """Mean ‖h‖ over the prompts' tokens but the first."""
    items = [to_input(prompt, str(i)) for i, prompt in enumerate(prompts)]
    run = client.run(items, capture=capture(site, reduce=Norm(), spans=[(1, None)]), model=model, progress=False)
    return float(np.mean(np.concatenate([np.ravel(run.inputs[item.name][site]) for item in items])))


def _directions(rows: ArrayLike) -> Floats:
    """[direction, width], of length 1."""
    found = np.asarray(rows, dtype=np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)
