"""NeuroScope's interventions as our edits.

With strength s (default 1), h a row at the component's output and m the mean of its rows over the baseline prompt:

    zero_ablation        (1−s)·h                  s in 0 … 1
    mean_ablation        (1−s)·h + s·m            s in 0 … 1
    random_replacement   (1−s)·h + s·ε, ε ~ N(0,1)   s in 0 … 1
    noise_injection      h + 0.1·s·ε              s of 0 or more; 0.1 is the standard deviation that dialect starts from
    scaled_intervention  s·h
    activation_patching  the baseline's row at the same position; s must be 1

`target_positions` are absolute token positions (negative: from the prompt's end); absent, null or "all" means every
position, generated ones too, except in activation_patching, which has only the prompt's to give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ....protos.errors import Internal, InvalidArgument
from ....protos.sites import ATTENTION_SITES, Site
from ....protos.spec import Add, Capture, Constant, Edit, FromInput, Hook, Mean, Noise, Replace, Scale, Where, Zeros
from ....protos.tensors import Array, Tensor
from ....protos.wire.assemble import AssembledCapture
from ..http.fields import Fields, brief, is_list
from .hooks import Place, place_of

__all__ = ["BASELINE", "PROMPT", "Intervention", "edit_hooks", "interventions_of", "mean_hooks", "means_of"]

PROMPT, BASELINE = "prompt", "baseline"
NOISE_STD = 0.1

TYPES = (
    "zero_ablation",
    "mean_ablation",
    "noise_injection",
    "activation_patching",
    "random_replacement",
    "scaled_intervention",
)


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change to one component."""

    place: Place
    type: str
    strength: float
    positions: tuple[int, ...] | None


def interventions_of(raw: object) -> tuple[Intervention, ...]:
    """The list out of a body."""
    if not is_list(raw) or not raw:
        raise InvalidArgument(f"interventions must be a list of at least one, got {brief(raw)}")
    return tuple(
        _intervention(Fields(item, f"interventions[{i}]"), f"interventions[{i}]") for i, item in enumerate(raw)
    )


def _intervention(fields: Fields, path: str) -> Intervention:
    place = place_of(fields.required("layer_name", str), fields.take("component", str, "residual"))
    kind = fields.take("type", str, "zero_ablation")
    if kind not in TYPES:
        why = " needs gradients, which this route does not offer" if kind == "gradient_based" else ""
        raise InvalidArgument(f"{path}.type {kind!r}{why}; allowed: {', '.join(TYPES)}")
    strength = fields.take("strength", float, 1.0)
    positions = _positions(fields)
    fields.done()
    _check_strength(kind, strength, path)
    if kind == "mean_ablation" and Site.parse(place.site()).name in ATTENTION_SITES:
        raise InvalidArgument(f"{path}: rows of {place.component} differ in length, so they have no mean")
    return Intervention(place, kind, strength, positions)


def _positions(fields: Fields) -> tuple[int, ...] | None:
    raw = fields.raw("target_positions")
    if raw is None or raw == "all":
        return None
    if not is_list(raw) or not raw or any(isinstance(item, bool) or not isinstance(item, int) for item in raw):
        name = fields.name("target_positions")
        raise InvalidArgument(f'{name} must be a list of token positions, or "all"; got {brief(raw)}')
    return tuple(raw)


def _check_strength(kind: str, strength: float, path: str) -> None:
    low, high = {
        "scaled_intervention": (-math.inf, math.inf),
        "noise_injection": (0.0, math.inf),
        "activation_patching": (1.0, 1.0),
    }.get(kind, (0.0, 1.0))
    if not low <= strength <= high or not math.isfinite(strength):
        allowed = f"{low:g} … {high:g}" if low < high else f"{low:g}: a blend of two prompts is not offered"
        raise InvalidArgument(f"{path}.strength {strength:g}; allowed for {kind}: {allowed}")


def mean_hooks(interventions: Sequence[Intervention]) -> list[Hook]:
    """What to read from the baseline before: the mean at each site that a mean_ablation changes."""
    sites = {item.place.site(): None for item in interventions if item.type == "mean_ablation"}
    return [Hook(site, capture=Capture(dtype="float32", reduce=Mean())) for site in sites]


def means_of(captures: Sequence[AssembledCapture]) -> dict[str, Array]:
    """Site → [width], or [head, width], without the row axis."""
    means: dict[str, Array] = {}
    for capture in captures:
        n_axes = len(Site.parse(capture.key.site).axes) - 1
        shape = capture.array.shape
        if len(shape) < n_axes or any(n != 1 for n in shape[: len(shape) - n_axes]):
            raise Internal(f"the mean at {capture.key.site} has shape {list(shape)}")
        means[capture.key.site] = capture.array.reshape(shape[len(shape) - n_axes :])
    return means


def edit_hooks(interventions: Sequence[Intervention], means: Mapping[str, Array], seed: int) -> list[Hook]:
    """The edits, in order, on the prompt alone. The i-th draws its noise from `seed + i`."""
    hooks: list[Hook] = []
    for i, item in enumerate(interventions):
        site = item.place.site()
        edits = _EDITS[item.type](item.strength, lambda site=site: Tensor.of(means[site]), seed + i)
        phase = "prompt" if item.type == "activation_patching" and item.positions is None else "all"
        where = Where(positions=item.positions, phase=phase)
        hooks += [Hook(site, edit=edit, where=where, inputs=(PROMPT,)) for edit in edits]
    return hooks


_Edits = Callable[[float, Callable[[], Tensor], int], list[Edit]]


def _faded(strength: float) -> Edit:
    """(1−s)·h; exactly zero at s = 1, whatever h holds."""
    return Replace(Zeros()) if strength == 1 else Scale(1 - strength)


def _towards_mean(strength: float, mean: Callable[[], Tensor], seed: int) -> list[Edit]:
    if strength == 1:
        return [Replace(Constant(mean()))]
    return [Scale(1 - strength), Add(mean(), alpha=strength)]


_EDITS: dict[str, _Edits] = {
    "zero_ablation": lambda strength, mean, seed: [_faded(strength)],
    "mean_ablation": _towards_mean,
    "noise_injection": lambda strength, mean, seed: [Noise(NOISE_STD * strength, seed)],
    "activation_patching": lambda strength, mean, seed: [Replace(FromInput(BASELINE))],
    "random_replacement": lambda strength, mean, seed: [_faded(strength), Noise(strength, seed)],
    "scaled_intervention": lambda strength, mean, seed: [Scale(strength)],
}
