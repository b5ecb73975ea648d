"""What an edit gives back: the variant, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...clients import Hook, LowRank, Variant, hook
from ...protos.errors import Unsupported
from ...protos.tensors import Tensor
from .solver import Solved
from .target_value import TargetValue

__all__ = ["Edited", "variant_hooks"]

_SITES = {"w_down": "mlp_out", "w_o": "attn_out"}


@dataclass(frozen=True, slots=True, eq=False)
class Edited:
    """Facts as a change of weights."""

    variant: Variant
    method: str
    layers: tuple[int, ...]
    values: tuple[TargetValue, ...]
    """One a fact; empty for fine-tuning."""
    solved: Mapping[str, Solved]
    """Weight name → the solution in float64; empty for fine-tuning."""
    notes: tuple[str, ...] = ()
    """What to know of it: which layer and why, how many keys were preserved."""

    @property
    def hooks(self) -> list[Hook]:
        """The same change as hooks of one request."""
        return variant_hooks(self.variant)

    def __str__(self) -> str:
        sizes = ", ".join(_told(name, norms) for name, norms in self.variant.manifest.norms.items())
        return "\n".join([f"{self.method} at layers {', '.join(map(str, self.layers))}: {sizes}", *self.notes])


def variant_hooks(variant: Variant) -> list[Hook]:
    """Deltas at w_down and w_o as `low_rank` hooks at what these compute, then the variant's own hooks: exactly the same.

    For a request that shall try a variant without its being loaded. Raises Unsupported for deltas at other weights.
    """
    found: list[Hook] = []
    for name, delta in variant.deltas.items():
        kind, _, layer = name.partition(".")
        if kind not in _SITES or delta.bias is not None:
            raise Unsupported(
                f"a delta at {name}{' with a bias' if delta.bias is not None else ''} is no hook; load the variant: "
                "client.load_variant(variant), then variant=name"
            )
        found.append(hook(f"{_SITES[kind]}.{layer}", LowRank(Tensor.of(delta.a), Tensor.of(delta.b))))
    return [*found, *variant.plan.hooks]


def _told(name: str, norms: Mapping[str, float]) -> str:
    of = f", {norms['relative_norm']:.1%} of ‖W‖" if "relative_norm" in norms else ""
    return f"{name} rank {norms['rank']:.0f}, ‖Δ‖ {norms['norm']:.3g}{of}"
