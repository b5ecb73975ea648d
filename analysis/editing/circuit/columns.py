"""A circuit's weights changed: knocked out, cleared of a direction or a concept, put to its mean, or told other facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Variant, capture
from ....clients.requests.prompts import to_input
from ....protos.errors import InvalidArgument, Unsupported
from ....protos.spec import Plan
from ....protos.variants.delta import Delta
from ....protos.variants.manifest import Base, Manifest
from ...circuits.circuit import Circuit
from ...circuits.weights import WeightMask, circuit_weights
from ..safety.changes import ablate_direction
from ..solver import solve_delta
from ..target_value import target_value
from ..writers import WRITERS, Writer, post_norms, writer
from .transforms import Erase, Mean, Orthogonalise, ProjectOut, Retarget, Scale, Transform

__all__ = ["EditedCircuit", "edit_circuit"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class EditedCircuit:
    """The change, and how large it is."""

    variant: Variant
    columns: Mapping[str, int]
    """Weight → how many of its columns are the circuit's."""
    relative_norms: Mapping[str, float]
    """Weight → ‖ΔW‖_F ÷ ‖W‖_F."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = [
            f"{name}: {self.columns.get(name, 0)} columns, rank {delta.rank}, ‖Δ‖/‖W‖ {self.relative_norms[name]:.3f}"
            for name, delta in self.variant.deltas.items()
        ]
        return "\n".join([*told, *self.notes])


def edit_circuit(
    client: Client, circuit: Circuit, transform: Transform, *, name: str = "", model: str = ""
) -> EditedCircuit:
    """A variant that changes what a circuit writes, and no number outside its columns of w_o and w_down (but `Orthogonalise`).

    Raises InvalidArgument for a circuit without such columns, and Unsupported for ProjectOut and Erase where norms stand
    behind the writers.
    """
    mask, info = circuit_weights(client, circuit, model=model), client.describe(model)
    if isinstance(transform, Orthogonalise):
        found = ablate_direction(client, transform.direction, name=name, model=model)
        return _edited(
            client, replace(found, manifest=_manifest(found.manifest, circuit, "orthogonalise")), {}, mask.notes, model
        )
    if isinstance(transform, (ProjectOut, Erase)) and post_norms(client, model=model):
        raise Unsupported(f"{info.architecture} has norms behind its writers; edit attn_out and mlp_out by hooks")
    columns = _columns_of(client, mask, model)
    deltas: dict[str, Delta] = {}
    if isinstance(transform, Retarget):
        deltas = _retargeted(client, transform, columns, model)
    else:
        means = _means(client, transform, list(columns), model) if isinstance(transform, Mean) else {}
        for weight, (one, own) in columns.items():
            deltas[weight] = (
                transform.delta(one, own, means[weight]) if isinstance(transform, Mean) else transform.delta(one, own)
            )
    kind = type(transform).__name__.lower()
    options = {"factor": transform.factor} if isinstance(transform, Scale) else {}
    manifest = _manifest(Manifest(name=name, base=Base.of(info), options=options), circuit, kind)
    counts = {weight: len(own) for weight, (_, own) in columns.items() if weight in deltas}
    return _edited(client, Variant(deltas, Plan(), manifest), counts, mask.notes, model)


def _columns_of(client: Client, mask: WeightMask, model: str) -> dict[str, tuple[Writer, NDArray[np.int64]]]:
    """Weight → (its numbers, the circuit's columns)."""
    found: dict[str, tuple[Writer, NDArray[np.int64]]] = {}
    for weight, part in mask.parts.items():
        kind, _, layer = weight.partition(".")
        if kind not in WRITERS or part.side == "rows":
            continue
        one = writer(client, "w_o" if kind == "w_o" else "w_down", int(layer), model=model)
        found[weight] = (one, np.flatnonzero(part.along("columns", one.weight.shape[1])))
    if not found:
        raise InvalidArgument(
            f"the circuit owns no columns of w_o or w_down ({', '.join(list(mask.parts)[:6])}); heads, neurons and whole blocks do"
        )
    return found


def _means(client: Client, transform: Mean, weights: list[str], model: str) -> dict[str, Floats]:
    """Weight → [d_in]: mean of what it reads, over all tokens of the reference prompts."""
    sites = {
        weight: ("z." if weight.startswith("w_o") else "mlp_act.") + weight.partition(".")[2] for weight in weights
    }
    sums, n = {weight: np.zeros(0) for weight in weights}, 0
    for start in range(0, len(transform.reference), 16):
        items = [to_input(prompt, str(i)) for i, prompt in enumerate(transform.reference[start : start + 16])]
        run = client.run(items, capture=[capture(site) for site in sites.values()], model=model, progress=False)
        for item in items:
            n += len(run.inputs[item.name].prompt_ids)
            for weight, site in sites.items():
                rows = np.asarray(run.inputs[item.name][site], dtype=np.float64)
                total = rows.reshape(len(rows), -1).sum(axis=0)
                sums[weight] = total if not len(sums[weight]) else sums[weight] + total
    if not n:
        raise InvalidArgument("Mean needs reference prompts")
    return {weight: total / n for weight, total in sums.items()}


def _retargeted(
    client: Client, transform: Retarget, columns: dict[str, tuple[Writer, NDArray[np.int64]]], model: str
) -> dict[str, Delta]:
    """Δ with Δ·k* = δ and zeros outside the circuit: the solver is shown keys that are zero there, so its answer is too."""
    layers = sorted(int(name.partition(".")[2]) for name in columns if name.startswith("w_down"))
    if not layers:
        raise InvalidArgument("facts are rewritten in w_down, and the circuit has none of its columns; take neurons")
    weight = f"w_down.{layers[0]}"
    one, own = columns[weight]
    values = [target_value(client, fact, layers[0], model=model) for fact in transform.facts]
    keys = np.zeros((one.weight.shape[1], len(values)))
    keys[own] = np.stack([value.key[own] for value in values], axis=1)
    solved = solve_delta(keys, np.stack([value.delta for value in values], axis=1))
    return {weight: Delta(solved.a, solved.b)}


def _manifest(manifest: Manifest, circuit: Circuit, kind: str) -> Manifest:
    return replace(
        manifest, method=f"edit_circuit: {kind}", circuit={"id": circuit.id}, made_of=({"circuit": circuit.id},)
    )


def _edited(
    client: Client, variant: Variant, columns: Mapping[str, int], notes: tuple[str, ...], model: str
) -> EditedCircuit:
    norms: dict[str, float] = {}
    for name, delta in variant.deltas.items():
        kind, _, layer = name.partition(".")
        one = writer(client, "w_o" if kind == "w_o" else "w_down", int(layer), model=model)
        norms[name] = delta.norm() / float(np.linalg.norm(one.weight))
    return EditedCircuit(variant, columns, norms, notes)
