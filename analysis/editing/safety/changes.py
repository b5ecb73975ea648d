"""A behaviour removed, brought about, or redirected, as variants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....clients import Add, Client, Condition, Hook, ProjectOut, Tensor, Variant, hook
from ....protos.errors import InvalidArgument
from ....protos.spec import Plan
from ....protos.variants.delta import Delta
from ....protos.variants.manifest import Base, Manifest
from ...steering.conditions import FittedCondition, conditional
from ..writers import WRITERS, behind_writers, left_out, writer
from .directions import ablation_hooks

__all__ = ["ablate_direction", "gate", "induce_direction", "redirect"]

Floats = NDArray[np.float64]


def ablate_direction(
    client: Client, direction: ArrayLike, *, weights_only: bool = False, name: str = "", model: str = ""
) -> Variant:
    """No writer writes along the direction any more: ΔW = −r̂ r̂ᵀ W (rank 1) at every w_o and w_down, and their biases.

    The embedding loses it by a hook; with `weights_only` by nothing, and then what tokens bring along stays.
    Where norms stand behind the writers, or more than they writes (mixtures, Falcon-H1), all is hooks, and `weights_only` is refused.
    """
    unit, info = _unit(client, direction, model), client.describe(model)
    manifest = Manifest(
        name=name, base=Base.of(info), method="ablate_direction", options={"weights_only": weights_only}
    )
    if behind := behind_writers(client, model=model):
        if weights_only:
            raise InvalidArgument(f"{info.architecture} has {behind}, so weights alone do not take a direction out")
        return Variant({}, Plan(tuple(ablation_hooks(unit))), manifest)
    deltas: dict[str, Delta] = {}
    for kind in WRITERS:
        for layer in range(info.n_layers):
            one = writer(client, kind, layer, model=model)
            deltas[one.name] = left_out(one, unit[None])
    edit = ProjectOut(Tensor.of(unit.astype(np.float32)))
    return Variant(deltas, Plan(() if weights_only else (hook("embed", edit),)), manifest)


def induce_direction(
    client: Client, direction: ArrayLike, layer: int, *, alpha: float = 1.0, name: str = "", model: str = ""
) -> Variant:
    """alpha·direction written by one layer's MLP at every token: a bias of w_down, or a hook where more stands behind it."""
    info = client.describe(model)
    given = _checked(direction, info.d_model) * alpha
    manifest = Manifest(
        name=name, base=Base.of(info), method="induce_direction", options={"layer": layer, "alpha": alpha}
    )
    if not 0 <= layer < info.n_layers:
        raise InvalidArgument(f"layer {layer} is outside 0 … {info.n_layers - 1}")
    if behind_writers(client, model=model):
        return Variant({}, Plan((hook(f"mlp_out.{layer}", Add(Tensor.of(given.astype(np.float32)))),)), manifest)
    d_in = writer(client, "w_down", layer, model=model).weight.shape[1]
    return Variant(
        {f"w_down.{layer}": Delta(np.zeros((d_in, 1)), np.zeros((1, info.d_model)), given)}, Plan(), manifest
    )


def gate(
    client: Client, hooks: Sequence[Hook], condition: FittedCondition | Condition, *, name: str = "", model: str = ""
) -> Variant:
    """Hooks that act only where a condition holds. A latched one reaches generated tokens alone: for an answer's first token
    fit one without (`fit_condition(…, pool="last", latch=False)`), at a layer before the hooks'."""
    manifest = Manifest(
        name=name, base=Base.of(client.describe(model)), method="gate", options={"condition": str(condition)[:500]}
    )
    return Variant({}, Plan(tuple(conditional(hooks, condition))), manifest)


def redirect(
    client: Client,
    direction: ArrayLike,
    site: str,
    condition: FittedCondition | Condition,
    *,
    alpha: float = 1.0,
    name: str = "",
    model: str = "",
) -> Variant:
    """Add a behaviour's direction where a condition holds (conditional activation steering, Lee et al. 2025)."""
    vector = Tensor.of(np.asarray(direction, dtype=np.float32))
    return gate(client, [hook(site, Add(vector, alpha))], condition, name=name, model=model)


def _unit(client: Client, direction: ArrayLike, model: str) -> Floats:
    found = _checked(direction, client.describe(model).d_model)
    return found / np.linalg.norm(found)


def _checked(direction: ArrayLike, width: int) -> Floats:
    found = np.asarray(direction, dtype=np.float64)
    if found.shape != (width,) or not np.isfinite(found).all() or not found.any():
        raise InvalidArgument(f"the direction has shape {list(found.shape)}; give [{width}] finite numbers, not all 0")
    return found
