"""The direction of a behaviour, by position and layer, and the one that removes it at a bounded cost (Arditi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, LogProb, ProjectOut, Tensor, capture, hook, steer
from ....clients.requests.prompts import Prompt, to_input
from ....protos.errors import InvalidArgument
from ...reports.at_ends import measure
from .behaviour import logodds

__all__ = ["Candidate", "Directions", "Selected", "ablation_hooks", "behaviour_direction", "select_direction"]

Floats = NDArray[np.float64]
SITE = "resid_post"


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """Differences of means."""

    values: Floats
    """[position, layer, d_model], not normalised."""
    positions: tuple[int, ...]
    """Counted from the prompt's end."""
    model_hash: str = ""

    def unit(self, position: int, layer: int) -> Floats:
        """[d_model], of length 1."""
        found = self.values[self.positions.index(position), layer]
        return found / np.linalg.norm(found)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one direction does."""

    position: int
    layer: int
    ablated: float
    """Mean log-odds of the behaviour on positives with the direction projected out everywhere."""
    induced: float
    """Mean log-odds on negatives with the difference added at its layer."""
    kl: float
    """On negatives, with the direction projected out."""


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The chosen direction, all others, and whether it keeps the bounds."""

    direction: Floats
    """[d_model], of length 1."""
    difference: Floats
    """[d_model]: as it was found, which `induced` adds."""
    best: Candidate
    candidates: tuple[Candidate, ...]
    base: float
    """Mean log-odds on positives without a change."""
    passed: bool
    sentence: str
    """What was chosen, or why none keeps the bounds."""

    def __str__(self) -> str:
        return self.sentence


def behaviour_direction(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    *,
    positions: Sequence[int] = (-1, -2, -3),
    model: str = "",
) -> Directions:
    """Mean row of positives minus that of negatives at `resid_post` of every layer, at the last tokens; float64."""
    info = client.describe(model)
    sums = np.zeros((2, len(positions), info.n_layers, info.d_model))
    ordered = sorted(positions)
    if not ordered or ordered[-1] >= 0 or min(len(positives), len(negatives)) < 1:
        raise InvalidArgument("a direction takes prompts of both kinds and positions counted from their end (negative)")
    for kind, prompts in enumerate((positives, negatives)):
        for start in range(0, len(prompts), 16):
            items = [to_input(prompt, str(i)) for i, prompt in enumerate(prompts[start : start + 16])]
            run = client.run(items, capture=capture(f"{SITE}.*", positions=ordered), model=model, progress=False)
            for item in items:
                for layer in range(info.n_layers):
                    rows = np.asarray(run.inputs[item.name][f"{SITE}.{layer}"], dtype=np.float64)
                    for index, position in enumerate(positions):
                        sums[kind, index, layer] += rows[ordered.index(position)] / len(prompts)
    return Directions(sums[0] - sums[1], tuple(positions), info.model_hash)


def ablation_hooks(direction: Floats) -> list[Hook]:
    """The direction projected out of everything that is written into the stream."""
    edit = ProjectOut(Tensor.of(np.asarray(direction, dtype=np.float32)))
    return [hook(site, edit) for site in ("embed", "attn_out.*", "mlp_out.*")]


def select_direction(
    client: Client,
    directions: Directions,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    tokens: Sequence[int],
    *,
    max_kl: float = 0.1,
    prune_last: float = 0.2,
    layers: Sequence[int] | None = None,
    model: str = "",
) -> Selected:
    """The direction after whose ablation the tokens are least likely on positives, of those that keep three bounds.

    KL on negatives of at most `max_kl`; added to negatives it makes the behaviour more likely than not (log-odds above 0);
    not in the last `prune_last` of the layers. Where none keeps them the best by ablation is given, of those within the KL
    where there are such, and the sentence says which bound it breaks. Every candidate is two plans of a sweep.
    """
    n_layers = directions.values.shape[1]
    among = range(round(n_layers * (1 - prune_last))) if layers is None else layers
    places = [(position, layer) for position in directions.positions for layer in among]
    metric, n = LogProb(tokens=tuple(tokens)), len(positives)
    # Sent apart: an ablation is a forward of the whole model, an induction of the layers behind it alone.
    ablations = [ablation_hooks(directions.unit(*place)) for place in places]
    removed = measure(client, [*positives, *negatives], metric, [[], *ablations], model=model)
    added = [
        [steer(f"{SITE}.{layer}", directions.values[directions.positions.index(position), layer].astype(np.float32))]
        for position, layer in places
    ]
    induced = measure(client, negatives, metric, added, kl=False, model=model)
    found = [
        Candidate(position, layer, float(logodds(removed.values[i + 1, :n]).mean()), float(logodds(induced.values[i]).mean()), float(removed.kl[i + 1, n:].mean()))
        for i, (position, layer) in enumerate(places)
    ]  # fmt: skip
    kept = [one for one in found if one.kl <= max_kl and one.induced > 0]
    cheap = [one for one in found if one.kl <= max_kl]  # of directions that break the model the best says least
    best = min(kept or cheap or found, key=lambda one: one.ablated)
    base = float(logodds(removed.values[0, :n]).mean())
    told = f"layer {best.layer}, position {best.position}: log-odds {base:+.2f} → {best.ablated:+.2f}, induced {best.induced:+.2f}, KL on negatives {best.kl:.3f}"
    if not kept:
        broken = [f"KL {best.kl:.3f} is above {max_kl:g}"] * (best.kl > max_kl)
        broken += [f"added to negatives it gives log-odds {best.induced:+.2f}, not above 0"] * (best.induced <= 0)
        told = f"no direction of {len(found)} keeps the bounds; the best by ablation is {told}: {' and '.join(broken)}"
    difference = directions.values[directions.positions.index(best.position), best.layer]
    return Selected(directions.unit(best.position, best.layer), difference, best, tuple(found), base, bool(kept), told)
