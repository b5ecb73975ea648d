"""A circuit as a variant: the model with everything outside it replaced, or changed in the circuit's weights alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ...clients import Client, Zeros
from ...clients.requests.prompts import Prompts
from ...protos.conditions import When
from ...protos.errors import InvalidArgument
from ...protos.spec import Plan
from ...protos.variants.manifest import Base, Manifest
from ...protos.variants.variant import Variant
from ..ablation.reference import Reference, measure
from ..attribution.taylor import patterns
from .ablated import ablation_hooks, mean_source
from .circuit import Circuit
from .weights import circuit_weights

__all__ = ["Outside", "install"]

Outside = Literal["mean", "zero", "keep"]


def install(
    client: Client,
    circuit: Circuit,
    *,
    outside: Outside = "mean",
    reference: Reference | Prompts | None = None,
    deltas: Variant | None = None,
    gate: When | None = None,
    include_shared: bool = False,
    name: str = "",
    model: str = "",
) -> Variant:
    """A variant that runs the circuit alone, or (`outside="keep"`) the model with `deltas` confined to the circuit's weights.

    "mean" puts the mean of `reference` (prompts, or one measured) in place of every unit of the space outside the circuit;
    sites outside the space stay. What the variant can do is what the circuit's faithfulness says, no more. `gate`: only where
    a condition holds. Raises InvalidArgument for a circuit with positions, which prompts of other lengths do not have, and
    for one that needs more hooks than a variant may hold.
    """
    if outside not in ("mean", "zero", "keep"):
        raise InvalidArgument(f"outside={outside!r}; allowed: mean, zero, keep")
    if (outside == "keep") != (deltas is not None):
        raise InvalidArgument(
            "outside='keep' installs the deltas of a variant, confined to the circuit: give deltas=, and only then"
        )
    if (outside == "mean") != (reference is not None):
        raise InvalidArgument(
            "outside='mean' needs reference=, the prompts whose means are put in, and nothing else does"
        )
    info = client.describe(model)
    base = Base.of(info)
    told = {"id": circuit.id}
    if deltas is not None:
        if gate is not None:
            raise InvalidArgument("weights have no gate; name the variant with where= in the request, or install hooks")
        confined = circuit_weights(client, circuit, include_shared=include_shared, model=model).confined(deltas)
        return _of_base(confined, name=name, base=base)
    if circuit.space.n_tokens is not None:
        raise InvalidArgument(
            f"the circuit is of prompts with {circuit.space.n_tokens} tokens, and a variant serves prompts of any length; find it over a "
            "space without positions"
        )
    if circuit.origin.model_hash not in ("", info.model_hash):
        raise InvalidArgument(f"the circuit is of another model ({circuit.origin.model})")
    if isinstance(reference, Reference) or reference is None:
        means = reference
    else:
        means = measure(client, reference, patterns(circuit.space.sites), model=model)
    source = Zeros() if means is None else mean_source(means, 1)
    hooks = ablation_hooks(circuit.space, circuit.mask, source)
    if not hooks:
        raise InvalidArgument("the circuit is all of its space, so there is nothing outside it to replace")
    if gate is not None:
        hooks = [replace(hook, where=replace(hook.where, when=gate)) for hook in hooks]
    options = {"outside": outside, "gated": gate is not None}
    options |= {} if means is None else {"reference_prompts": means.n_prompts, "reference_tokens": means.n_rows}
    manifest = Manifest(
        name=name, base=base, method="install", options=options, made_of=({"circuit": circuit.id},), circuit=told
    )
    return Variant({}, Plan(tuple(hooks)), manifest)


def _of_base(variant: Variant, *, name: str, base: Base) -> Variant:
    """The variant with a name and the base it was made for."""
    return replace(variant, manifest=replace(variant.manifest, name=name, base=base))
