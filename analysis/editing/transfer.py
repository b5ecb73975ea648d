"""What one model can hand to another: directions and affine edits by a map of their streams, deltas by what they do.

Parameters of two models share no basis, so a delta is carried over by function: what it changes in the source's stream,
mapped, is what a delta of the target has to write at its own keys (functional matching; Rinaldi et al.).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Affine, Base, Client, Delta, Input, Manifest, SteeringVector, Tensor, Variant, capture
from ...clients.requests.hooks import Hooks
from ...protos.errors import FailedPrecondition, InvalidArgument
from .edited import variant_hooks
from .model_map import ModelMap, Place, described, matched_positions
from .solver import solve_delta
from .target_value import require_linear_output

__all__ = ["Transferred", "install_circuit", "transfer_affine", "transfer_variant", "transfer_vector"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Transferred:
    """A variant of the target model, and how well it writes what was wanted where it was fitted."""

    variant: Variant
    map: ModelMap
    fit: float
    """1 − ‖wanted − written‖²/‖wanted‖² over the prompts' tokens."""
    n_rows: int
    level: str = "3: deltas across models, by what they do"

    def __str__(self) -> str:
        return f"level {self.level}; {self.map}; writes {self.fit:.3f} of what is wanted at {self.n_rows} tokens"


def transfer_vector(vector: Any, by: ModelMap) -> Any:
    """A direction of the source in the target's stream, T·v: an array [..., d_source], or a SteeringVector at the map's site.

    Level 2. Raises InvalidArgument for a steering vector of another site.
    """
    if not isinstance(vector, SteeringVector):
        return by.directions(vector)
    site, other = (f"{by.site}.{layer}" for layer in by.layers)
    if set(vector.directions) != {site}:
        raise InvalidArgument(f"the vector is at {', '.join(vector.directions)}, and the map leads from {site}")
    if vector.model_hash not in ("", by.hashes[0]):
        raise FailedPrecondition(f"the vector is of model {vector.model_hash}, and the map leads from {by.hashes[0]}")
    moved = by.directions(vector.directions[site]).astype(np.float32)
    return SteeringVector({other: moved}, "", by.hashes[1], f"{vector.made}, transferred", {"map": str(by)})


def transfer_affine(edit: Affine, by: ModelMap) -> Affine:
    """An affine edit h + α((h·A + c)·B) of the source (an eraser, ReFT, a condition's direction) for the target. Level 2.

    The target's row is read back through the pseudo-inverse of T: A′ = T⁺ᵀA, c′ = c − (T⁺b)·A, B′ = B·Tᵀ.
    """
    back: Any = np.linalg.pinv(by.matrix)
    a, b = edit.a.numpy().astype(np.float64), edit.b.numpy().astype(np.float64)
    c = np.zeros(a.shape[1]) if edit.c is None else edit.c.numpy().astype(np.float64)
    moved = (back.T @ a, b @ by.matrix.T, c - (back @ by.bias) @ a)
    return Affine(*(Tensor.of(one.astype(np.float32)) for one in moved), alpha=edit.alpha)


def transfer_variant(
    source: Place,
    variant: Variant,
    target: Place,
    by: ModelMap,
    prompts: Sequence[str],
    *,
    ridge: float = 1e-4,
    rank: int | None = None,
    energy: float = 0.999,
    preserve: Any = None,
    name: str = "",
) -> Transferred:
    """A delta at `w_down` of the map's target layer that does there what the variant does at the map's source layer.

    Over the prompts' matched tokens: the variant's change of the source's stream, mapped, is what is wanted; keys are the
    target's `mlp_act`. Least squares with `ridge` times the mean eigenvalue of the keys' Gram matrix, `preserve` [d_mlp, p] more
    keys that shall write nothing; then the best approximation of `rank`, or of the least rank that keeps `energy`. Give
    prompts that the variant changes and such that it must not, and as many tokens as the target has inputs, or more.
    Level 3. Raises Unsupported for a target whose MLP ends in more than a matrix, InvalidArgument where nothing changes.
    """
    info, layer = described(target), by.layers[1]
    require_linear_output(info, layer)
    if by.site != "resid_post":
        raise InvalidArgument(f"the map is of {by.site}; a delta at w_down needs one of resid_post")
    if variant.manifest.base.model_hash not in ("", by.hashes[0]) or info.model_hash != by.hashes[1]:
        raise FailedPrecondition("variant, map and target are not of the models that the map was fitted between")
    changes, keys = _changes(source, variant, target, by, prompts)
    if not np.linalg.norm(changes) > 0:
        raise InvalidArgument(
            f"the variant changes nothing at {by.site}.{by.layers[0]} for these prompts: take a map from a layer at or behind "
            f"those that it edits ({', '.join(variant.deltas)})"
        )
    wanted = by.directions(changes)
    if preserve is not None:
        more = np.asarray(preserve, dtype=np.float64)
        keys = np.concatenate([keys, more.T])
        wanted = np.concatenate([wanted, np.zeros((more.shape[1], wanted.shape[1]))])
    solved = solve_delta(keys.T, wanted.T, mode="ridge", lam=ridge * len(keys))
    delta = _compressed(solved.a @ solved.b, rank, energy)
    missed = wanted - keys @ delta.a.astype(np.float64) @ delta.b.astype(np.float64)
    fit = 1 - float(np.linalg.norm(missed) ** 2 / np.linalg.norm(wanted) ** 2)
    manifest = Manifest(
        name=name,
        base=Base.of(info),
        method="transfer",
        options={
            "layers": list(by.layers),
            "kind": by.kind,
            "ridge": ridge,
            "held_out_r2": by.held.r2 if by.held.n_rows else None,
            "fit": fit,
        },
        made_of=({"hash": variant.hash, "name": variant.manifest.name, "scale": 1.0},),
    )
    return Transferred(Variant({f"w_down.{layer}": delta}, manifest=manifest), by, fit, len(keys))


def install_circuit(*_: Any, **__: Any) -> None:
    """Refused: a circuit's heads and neurons have no counterparts in a model of another architecture. Raises InvalidArgument."""
    raise InvalidArgument(
        "a circuit of one model cannot be installed in another: its heads and neurons have no counterparts there, and "
        "what is called the same layer is not the same computation. What it does can be handed over by function: make it a "
        "variant of its own model (circuits' install), then transfer_variant(source, variant, target, fit_map(…), prompts)"
    )


def _changes(
    source: Place, variant: Variant, target: Place, by: ModelMap, prompts: Sequence[str]
) -> tuple[Floats, Floats]:
    """(changes of the source's stream [row, d_source], keys of the target [row, d_mlp]) at matched tokens."""
    (one, model), (other, other_model) = (
        place if isinstance(place, tuple) else (place, "") for place in (source, target)
    )
    stream, act = f"{by.site}.{by.layers[0]}", f"mlp_act.{by.layers[1]}"
    hooks = variant_hooks(variant)
    changes: list[Floats] = []
    keys: list[Floats] = []
    for text in prompts:
        tokens = one.tokenize(text, model=model), other.tokenize(text, model=other_model)
        pairs = matched_positions(*tokens, text)
        if not pairs:
            continue
        before, after = (_row(one, model, tokens[0].token_ids, stream, h) for h in ((), hooks))
        changes.append((after - before)[[p for p, _ in pairs]])
        keys.append(_row(other, other_model, tokens[1].token_ids, act, ())[[p for _, p in pairs]])
    if not keys:
        raise InvalidArgument("no token of the two models ends at the same character of these prompts")
    return np.concatenate(changes), np.concatenate(keys)


def _row(client: Client, model: str, ids: Sequence[int], site: str, hooks: Hooks) -> Floats:
    item = Input(token_ids=tuple(ids))
    run = client.run(item, capture=[capture(site)], hooks=hooks, model=model, progress=False)
    found: Floats = np.asarray(run[site], dtype=np.float64)
    return found


def _compressed(dense: Floats, rank: int | None, energy: float) -> Delta:
    """From [d_in, d_out]."""
    left, size, right = np.linalg.svd(dense, full_matrices=False)
    kept = np.cumsum(size**2) / float(np.sum(size**2))
    n = min(int(np.searchsorted(kept, energy)) + 1, len(size)) if rank is None else min(rank, len(size))
    return Delta(left[:, :n] * size[:n], right[:n])
