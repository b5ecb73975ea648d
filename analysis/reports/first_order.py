"""What a variant's deltas do to a metric, to first order, without running it: Σ ⟨∂m/∂y, ΔW x⟩ over weights and positions.

x is what a weight reads and y what its module gives; both are of the base. One gradient request a batch of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Norm, capture
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument
from ...protos.model_info import ModelInfo
from ...protos.variants.delta import Delta
from ...protos.variants.variant import Variant
from ...protos.variants.weight_names import split_weight
from ..tasks import FittedTask

__all__ = ["FirstOrder", "activation_change", "first_order", "weight_sites"]

_SITES: Mapping[str, tuple[str, str]] = {
    "w_v": ("attn_in", "v"),
    "w_o": ("z", "attn_out"),
    "w_gate": ("mlp_in", "mlp_gate"),
    "w_up": ("mlp_in", "mlp_up"),
    "w_down": ("mlp_act", "mlp_out"),
}
"""Weight → the site that it reads and the one that is its module's output. Queries and keys are rotated before their sites."""
INPUTS_A_REQUEST = 16

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class FirstOrder:
    """The predicted change of a task's metric."""

    change: Floats
    """[example]."""
    by_weight: Mapping[str, Floats]
    """Weight → [example]."""
    left_out: tuple[str, ...]
    """Weights whose inputs or outputs are at no site: nothing is said of their part."""


def weight_sites(info: ModelInfo, names: Sequence[str]) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    """Weight → (site read, site written), and the names that have none on this model."""
    found: dict[str, tuple[str, str]] = {}
    offered = {site.name: site for site in info.sites}
    for name in names:
        kind, layer = split_weight(name)
        pair = _SITES.get(kind)
        if layer is None or pair is None or not all(site in offered and offered[site].gradients for site in pair):
            continue
        if any(layer not in (offered[site].layers or ()) for site in pair) or _between(info, kind):
            continue
        found[name] = (f"{pair[0]}.{layer}", f"{pair[1]}.{layer}")
    return found, tuple(name for name in names if name not in found)


def _between(info: ModelInfo, kind: str) -> bool:
    """Whether the model says that something stands between the module's output and the site (a norm, a multiplier)."""
    note = next((site.note for site in info.sites if site.name == _SITES[kind][1]), "")
    return bool(note) and kind in ("w_o", "w_down", "w_v")


def first_order(client: Client, variant: Variant, task: FittedTask, *, progress: bool = True) -> FirstOrder:
    """The predicted change of every example's logit difference. Hooks of the variant's plan are not in it.

    Raises InvalidArgument where no delta is at a weight whose sites are offered.
    """
    sites, left_out = weight_sites(client.describe(task.model), tuple(variant.deltas))
    if not sites:
        raise InvalidArgument(
            f"the first order of {', '.join(variant.deltas) or 'hooks'} cannot be told: no site is at them"
        )
    reads = sorted({read for read, _ in sites.values()})
    writes = sorted({write for _, write in sites.values()})
    found: dict[str, list[float]] = {name: [] for name in sites}
    with progress_bar("first order", "prompts", show=progress) as bar:
        for batch in task.batches(INPUTS_A_REQUEST):
            bar(len(next(iter(found.values()))), len(task))
            run = client.gradients(
                batch.clean, batch.targets, at=writes, capture=reads, model=task.model, progress=False
            )
            for name, (read, write) in sites.items():
                for one in batch.names:
                    x, g = run.inputs[one].captures[read], run.inputs[one].gradients[write]
                    found[name].append(_inner(variant.deltas[name], _rows(x), _rows(g)))
    by_weight = {name: np.array(values) for name, values in found.items()}
    return FirstOrder(np.sum(list(by_weight.values()), axis=0), by_weight, left_out)


def activation_change(
    client: Client, variant: Variant, prompts: Sequence[str], *, model: str = ""
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Weight → Σ‖ΔW x‖² / Σ‖y‖² over the prompts' tokens (but each first one), from base activations alone; and those left out.

    It is tr(Δ C Δᵀ)/tr(W C Wᵀ) with C the second moment of x, y counting a bias in.
    """
    sites, left_out = weight_sites(client.describe(model), tuple(variant.deltas))
    moved, had = dict.fromkeys(sites, 0.0), dict.fromkeys(sites, 0.0)
    reads = [capture(site, id=f"rows {site}") for site in sorted({read for read, _ in sites.values()})]
    sizes = [capture(site, reduce=Norm(), id=f"size {site}") for site in sorted({write for _, write in sites.values()})]
    for start in range(0, len(prompts) if sites else 0, INPUTS_A_REQUEST):
        run = client.run(list(prompts[start : start + INPUTS_A_REQUEST]), capture=[*reads, *sizes], model=model)
        for item in run.inputs.values():
            for name, (read, write) in sites.items():
                delta = variant.deltas[name]
                x = _rows(item.captures.hook(f"rows {read}")[read])[1:]
                moved[name] += float((_moved(delta, x) ** 2).sum())
                norms = item.captures.hook(f"size {write}")[write][1:].astype(np.float64)
                had[name] += float((norms**2).sum())
    return {name: moved[name] / had[name] if had[name] else float("nan") for name in sites}, left_out


def _moved(delta: Delta, x: Floats) -> Floats:
    found = (x @ delta.a.astype(np.float64)) @ delta.b.astype(np.float64)
    return found if delta.bias is None else found + delta.bias.astype(np.float64)


def _inner(delta: Delta, x: Floats, g: Floats) -> float:
    """Σ over rows of ⟨g, ΔW x + bias⟩, through the factors."""
    a, b = delta.a.astype(np.float64), delta.b.astype(np.float64)
    total = float(((x @ a) * (g @ b.T)).sum())
    return total if delta.bias is None else total + float((g @ delta.bias.astype(np.float64)).sum())


def _rows(array: NDArray[np.generic]) -> Floats:
    """[pos, feature]: heads side by side."""
    return array.reshape(len(array), -1).astype(np.float64)
