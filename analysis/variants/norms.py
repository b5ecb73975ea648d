"""How large a variant is beside the weights that it changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...clients import Client, Variant
from ..reports.base_weights import base_matrix, largest_singular, size_of

__all__ = ["norms", "with_norms"]


def norms(client: Client, variant: Variant, *, model: str = "") -> dict[str, dict[str, float]]:
    """Weight → rank, norm (‖ΔW‖_F), singular (σ₁ of ΔW), and relative_norm, base_singular where the model says where W is.

    Raises as `Variant.bound`: FailedPrecondition for a variant of another model, InvalidArgument for weights that it has not.
    """
    info = client.describe(model)
    bound = variant.bound(info)
    found: dict[str, dict[str, float]] = {}
    for name, delta in bound.deltas.items():
        matrix = base_matrix(client, info, name, model=model)
        size = size_of(delta, None)
        told: Mapping[str, float | int | None] = {key: size[key] for key in ("rank", "norm", "singular")}
        found[name] = {key: float(value) for key, value in told.items() if value is not None}
        if matrix is not None:
            whole = float((matrix**2).sum() ** 0.5)
            found[name] |= {"relative_norm": found[name]["norm"] / whole, "base_singular": largest_singular(matrix)}
    return found


def with_norms(client: Client, variant: Variant, *, model: str = "") -> Variant:
    """The same content, bound to the model, with its norms in the manifest (and so in the card of its folder)."""
    bound = variant.bound(client.describe(model))
    return replace(bound, manifest=replace(bound.manifest, norms=norms(client, bound, model=model)))
