"""Variants that each act in places of their own, as the hooks of one plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...protos.edits import Add, LowRank
from ...protos.errors import InvalidArgument
from ...protos.hooks import Hook, Where
from ...protos.spec import Plan
from ...protos.tensors import Tensor
from ...protos.variants.variant import Variant
from ...protos.variants.weight_names import split_weight

__all__ = ["SITES", "gated"]

SITES = {"w_down": "mlp_out", "w_o": "attn_out", "w_up": "mlp_up", "w_gate": "mlp_gate"}
"""Weight → the site that it computes, where nothing comes between (no norm behind it)."""


def gated(variants: Sequence[Variant], gates: Sequence[Where]) -> Plan:
    """Hooks of all, those of each at its own gate; deltas as low_rank hooks.

    Raises InvalidArgument for deltas that no hook can do, and for hooks that have a place of their own already.
    """
    if len(gates) != len(variants):
        raise InvalidArgument(f"{len(gates)} gates for {len(variants)} variants; give one for each")
    return Plan(tuple(hook for one, gate in zip(variants, gates, strict=True) for hook in _hooks(one, gate)))


def _hooks(variant: Variant, gate: Where) -> Iterator[Hook]:
    for weight, delta in variant.deltas.items():
        kind, layer = split_weight(weight)
        if kind not in SITES:
            raise InvalidArgument(
                f"no hook does what the delta at {weight} does; name the variants together in the request instead, each with its own "
                "where: variant=[use(a, where=…), use(b, where=…)]"
            )
        site = f"{SITES[kind]}.{layer}"
        yield Hook(site, LowRank(Tensor.of(delta.a), Tensor.of(delta.b)), where=gate)
        if delta.bias is not None:
            yield Hook(site, Add(Tensor.of(delta.bias)), where=gate)
    for hook in variant.plan.hooks:
        if hook.where != Where():
            raise InvalidArgument(
                f"the hook at {hook.site} has a where of its own; leave its variant out, or write the plan by hand"
            )
        yield replace(hook, where=gate, id=None)
