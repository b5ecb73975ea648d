"""What a tuned checkpoint is more than its base, as low-rank deltas with the energy that they leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ....protos.tensors import Array
from ....protos.variants.delta import Delta
from ....protos.variants.limits import MAX_RANK
from ....protos.variants.manifest import Base, Manifest
from ....protos.variants.variant import Variant
from ..checkpoint import resolve_model
from ..conversion.plain import STORES_TRANSPOSED
from ..conversion.source import FileTensors
from ..json_file import json_object

__all__ = ["Difference", "difference"]

Float64 = NDArray[np.float64]
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class Difference:
    """The variant, and what it leaves out."""

    variant: Variant
    lost: Mapping[str, float]
    """Module → part of ‖ΔW‖²_F that its rank leaves out."""
    left: Mapping[str, float]
    """Tensors that differ and are no linear weights (norms, positions) → ‖difference‖/‖base‖; empty unless they were allowed."""


def difference(
    base: Path,
    tuned: Path,
    *,
    energy: float = 0.99,
    max_rank: int = MAX_RANK,
    drop: bool = False,
    watch: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Difference:
    """TUNED − BASE of each linear weight by singular values, of the least rank that keeps so much of its energy.

    Raises InvalidArgument for models that are not alike in shape, that do not differ, and (unless `drop`) for differences in what
    is no linear weight, which a variant does not hold.
    """
    before, after = FileTensors.of(base), FileTensors.of(tuned)
    if before.stored.keys() != after.stored.keys():
        odd = sorted(before.stored.keys() ^ after.stored.keys())
        raise InvalidArgument(
            f"{base} and {tuned} do not hold the same tensors: {', '.join(odd[:4])} in one of them alone"
        )
    config = json_object(base / "config.json")
    turned = config.get("model_type") in STORES_TRANSPOSED
    tied = not any(name.endswith(f"{_HEAD}.weight") for name in before.stored)
    deltas: dict[str, Delta] = {}
    lost: dict[str, float] = {}
    left: dict[str, float] = {}
    biases: dict[str, Array] = {}
    for done, name in enumerate(sorted(before.stored)):
        watch(done, len(before.stored), name)
        change, size = _change(before, after, name, tuned)
        if change is None:
            continue
        module = name.removesuffix(".weight").removesuffix(".bias")
        if name.endswith(_EMBEDDINGS):
            deltas["w_embed"], lost["w_embed"] = _low_rank(change, energy, max_rank)
            if tied:  # one matrix with two names: the head changes with it
                own = deltas["w_embed"]
                deltas["w_unembed"], lost["w_unembed"] = Delta(own.b.T, own.a.T), lost["w_embed"]
        elif change.ndim == 2 and name.endswith(".weight"):
            matrix = change if turned and not module.endswith(_HEAD) else change.T
            deltas[f"module:{module}"], lost[module] = _low_rank(matrix, energy, max_rank)
        elif change.ndim == 1 and name.endswith(".bias") and _is_linear(before, module):
            biases[module] = change
        else:
            left[name] = float(np.linalg.norm(change)) / size if size else float("inf")
    for module, bias in biases.items():
        deltas[f"module:{module}"] = _with_bias(deltas.get(f"module:{module}"), bias, before, module, turned=turned)
    if left and not drop:
        told = ", ".join(f"{name} by {part:.1%}" for name, part in list(left.items())[:4])
        raise InvalidArgument(
            f"{tuned} differs from {base} in {len(left)} tensors that a variant does not hold ({told}); serve it as a model, or give "
            "--drop to leave them as the base has them"
        )
    if not deltas:
        raise InvalidArgument(f"{tuned} has the weights of {base}: there is nothing to write")
    manifest = Manifest(
        base=Base(id=base.name, model_hash=resolve_model(str(base)).model_hash),
        method="difference",
        options={"energy": energy, "max_rank": max_rank},
        metrics={"energy_lost": max(lost.values(), default=0.0), "left": left},
    )
    return Difference(Variant(deltas, manifest=manifest), lost, left)


def _change(before: FileTensors, after: FileTensors, name: str, tuned: Path) -> tuple[Float64 | None, float]:
    """What was added to a tensor, None for nothing, and the norm of what was there."""
    if before.stored[name].shape != after.stored[name].shape:
        raise InvalidArgument(
            f"{name} has shape {list(after.stored[name].shape)} in {tuned} and {list(before.stored[name].shape)} in its base"
        )
    old, new = before.get(name), after.get(name)
    if old.dtype == new.dtype and np.array_equal(old, new):
        return None, 0.0
    old = old.astype(np.float64)
    change = new.astype(np.float64) - old
    return (change if change.any() else None), float(np.linalg.norm(old))


def _low_rank(change: Float64, energy: float, max_rank: int) -> tuple[Delta, float]:
    """A·B ≈ change [d_in, d_out], through the Gram matrix of the shorter side: an embedding has tens of thousands of rows."""
    tall = change.shape[0] >= change.shape[1]
    gram = change.T @ change if tall else change @ change.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    total = float(values.sum())
    rank = min(int((np.cumsum(values) < energy * total * (1 - 1e-12)).sum()) + 1, max_rank)
    kept = vectors[:, :rank]
    delta = Delta(change @ kept, kept.T) if tall else Delta(kept, kept.T @ change)
    return delta, max(0.0, 1 - float(values[:rank].sum()) / total)


def _is_linear(tensors: FileTensors, module: str) -> bool:
    weight = tensors.stored.get(f"{module}.weight")
    return weight is not None and len(weight.shape) == 2


def _with_bias(delta: Delta | None, bias: Array, tensors: FileTensors, module: str, *, turned: bool) -> Delta:
    if delta is not None:
        return Delta(delta.a, delta.b, bias)
    shape = tensors.stored[f"{module}.weight"].shape
    d_in, d_out = shape if turned else shape[::-1]
    return Delta(np.zeros((d_in, 1)), np.zeros((1, d_out)), bias)
