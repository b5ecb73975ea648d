"""The causal battery: is a neuron necessary for a behaviour, sufficient to push it, and specific to its tokens?

Each measure is held against random neurons of the same layer that are as active (`matched_controls`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, capture
from ...protos.errors import InvalidArgument
from ...protos.spec import Hook
from ..tasks import FittedTask, Form
from .controls import MIN_CONTROLS, matched_controls, z_score
from .methods import Positions, ZeroAblation
from .parts import Part
from .sweep import measure_plans

__all__ = ["MEASURES", "Battery", "causal_battery"]

MEASURES = ("necessity", "sufficiency", "specificity")
PASS_Z = 2.0
INPUTS_A_REQUEST = 32


@dataclass(frozen=True, slots=True, eq=False)
class Battery:
    """One set of neurons against its controls. Values are means over the task's examples."""

    part: Part
    ablation: str
    """How it was taken out."""
    necessity: float
    """Drop of the metric when it is zeroed."""
    sufficiency: float
    """Rise of the metric when it is doubled."""
    specificity: float
    """|Δ| of the logits of the predicted tokens ÷ Σ|Δ| over the vocabulary when it is zeroed, at the last position.

    Chance is the predicted tokens' share of the vocabulary. Of neurons that move no logit beyond rounding it is noise.
    """
    z: Mapping[str, float]
    """Measure → deviations above the mean of the controls."""
    controls: Mapping[str, NDArray[np.float64]]
    """Measure → [control]."""
    control_units: tuple[tuple[int, ...], ...]
    """Neurons of the same layer, a set a control."""
    strength: float
    """Mean |activation| over the ablated tokens."""
    control_strength: float
    """The same, mean of the controls. Far from `strength`: the layer has no neurons as active, so z says less."""

    @property
    def passed(self) -> dict[str, bool]:
        """Measure → whether z is 2 or more."""
        return {name: z >= PASS_Z for name, z in self.z.items()}

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {getattr(self, name):+.3g} (z {self.z[name]:+.1f})" for name in MEASURES)
        matched = f"|a| {self.strength:.3g}, controls {self.control_strength:.3g}"
        return f"Battery({self.part}, {self.ablation}: {values}; {len(self.control_units)} controls; {matched})"


def causal_battery(
    client: Client,
    task: FittedTask,
    layer: int,
    neurons: int | Sequence[int],
    *,
    n_controls: int = MIN_CONTROLS,
    predicted: Sequence[int] | None = None,
    positions: Positions = None,
    form: Form = "clean",
    seed: int = 0,
) -> Battery:
    """Necessity, sufficiency and specificity of neurons (of mlp_act, several as one set), as z-scores against controls.

    Controls: `n_controls` random sets of neurons of the layer, matched on mean |activation| over the ablated tokens.
    `predicted`: token ids whose logits the neurons are meant to move (default: each example's own answers, correct and
    wrong; from a neuron's output weights, its top tokens). Ablation: zero, at `positions` (default: every token).
    Raises InvalidArgument for fewer than 30 controls, or a layer without as many other neurons.
    """
    if n_controls < MIN_CONTROLS:
        raise InvalidArgument(
            f"n_controls must be {MIN_CONTROLS} or more for a z-score that means something, got {n_controls}"
        )
    units = (neurons,) if isinstance(neurons, int) else tuple(neurons)
    strengths = _strengths(client, task, layer, positions, form)
    if not units or len(set(units)) != len(units) or not all(0 <= u < len(strengths) for u in units):
        raise InvalidArgument(
            f"neurons {list(units)}; allowed: distinct ones of 0 … {len(strengths) - 1}, at least one"
        )
    control_units = matched_controls(strengths, units, n_controls, np.random.default_rng(seed))
    parts = [Part(f"mlp_act.{layer}", units=chosen) for chosen in (units, *control_units)]
    rows = np.stack(
        [*_effects(client, task, parts, positions, form), _specific(client, task, parts, predicted, positions, form)]
    )
    return _battery(parts[0], rows, control_units, strengths)


def _battery(
    part: Part, rows: NDArray[np.float64], control_units: list[tuple[int, ...]], strengths: NDArray[np.float64]
) -> Battery:
    """`rows`: [measure, part], the controls after the part itself."""
    necessity, sufficiency, specificity = (float(value) for value in rows[:, 0])
    controls = {name: row[1:] for name, row in zip(MEASURES, rows, strict=True)}
    return Battery(
        part,
        ZeroAblation().kind,
        necessity,
        sufficiency,
        specificity,
        {name: z_score(float(value), controls[name]) for name, value in zip(MEASURES, rows[:, 0], strict=True)},
        controls,
        tuple(control_units),
        float(strengths[list(part.units or ())].mean()),
        float(strengths[np.array(control_units)].mean()),
    )


def _strengths(client: Client, task: FittedTask, layer: int, positions: Positions, form: Form) -> NDArray[np.float64]:
    """[neuron]: mean |activation| over the tokens that are ablated."""
    at = capture(f"mlp_act.{layer}") if positions is None else capture(f"mlp_act.{layer}", positions=positions)
    rows: list[NDArray[np.float64]] = []
    for batch in task.batches(INPUTS_A_REQUEST):
        run = client.run(batch.prompts(form), capture=at, model=task.model)
        rows += [np.abs(item[f"mlp_act.{layer}"].astype(np.float64)) for item in run.inputs.values()]
    return np.concatenate(rows).mean(axis=0)


def _effects(
    client: Client, task: FittedTask, parts: Sequence[Part], positions: Positions, form: Form
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Drop when zeroed and rise when doubled, [part] each."""
    plans: list[list[Hook]] = [[]]
    for part in parts:
        plans += [_zeroed(part, positions), [_doubled(part, positions)]]
    found = measure_plans(client, task, plans, form=form).mean(axis=0)
    return found[0] - found[1::2], found[2::2] - found[0]


def _specific(
    client: Client,
    task: FittedTask,
    parts: Sequence[Part],
    predicted: Sequence[int] | None,
    positions: Positions,
    form: Form,
) -> NDArray[np.float64]:
    """[part]: share of the change of all last logits that falls on the predicted tokens; 0 where nothing changes."""
    shares = np.zeros((len(task), len(parts)))
    for row, example in enumerate(task.examples):
        ids = list(dict.fromkeys((*example.correct, *example.wrong) if predicted is None else predicted))
        prompt = example.clean if form == "clean" else example.corrupt
        logits = _last_logits(client, prompt, [[], *(_zeroed(part, positions) for part in parts)], task.model)
        change = np.abs(logits[1:] - logits[0])
        total = change.sum(axis=1)
        shares[row] = np.divide(change[:, ids].sum(axis=1), total, out=np.zeros_like(total), where=total > 0)
    return shares.mean(axis=0)


def _last_logits(
    client: Client, prompt: tuple[int, ...], plans: Sequence[Sequence[Hook]], model: str
) -> NDArray[np.float64]:
    """[plan, vocab] at the prompt's last position: each plan is an input of its own."""
    read = capture("logits", positions=-1, dtype="float32")
    found: list[NDArray[np.float64]] = []
    for start in range(0, len(plans), INPUTS_A_REQUEST):
        some = plans[start : start + INPUTS_A_REQUEST]
        inputs = [Input(token_ids=prompt, name=str(i)) for i in range(len(some))]
        hooks = [Hook(h.site, h.edit, where=h.where, inputs=(str(i),)) for i, plan in enumerate(some) for h in plan]
        run = client.run(inputs, hooks=hooks, capture=read, model=model)
        found += [run.inputs[item.name]["logits"][0].astype(np.float64) for item in inputs]
    return np.stack(found)


def _zeroed(part: Part, positions: Positions) -> list[Hook]:
    return ZeroAblation().hooks(part, {}, positions)


def _doubled(part: Part, positions: Positions) -> Hook:
    return part.scale(2.0) if positions is None else part.scale(2.0, positions=positions)
