"""A variant's deltas at writers as hooks of one request."""

from __future__ import annotations

from probewire.clients import Add, Hook, LowRank, Tensor, Variant, hook

__all__ = ["as_hooks"]

SITES = {"w_o": "attn_out", "w_down": "mlp_out"}


def as_hooks(variant: Variant) -> list[Hook]:
    """What its modules give, changed: low_rank and add at the sites, on families without norms behind them."""
    found: list[Hook] = []
    for name, delta in variant.deltas.items():
        kind, _, layer = name.partition(".")
        found.append(hook(f"{SITES[kind]}.{layer}", LowRank(Tensor.of(delta.a), Tensor.of(delta.b))))
        if delta.bias is not None:
            found.append(hook(f"{SITES[kind]}.{layer}", Add(Tensor.of(delta.bias))))
    return [*found, *variant.plan.hooks]
