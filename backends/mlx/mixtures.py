"""Mixtures of experts: what their routers choose by, and by how much a block takes what each expert gives.

mlx-lm hands its experts the rows and which of them to use, and adds up what they give itself. So nothing here knows a
rule by which experts are chosen: their weights are the derivative of what the block gives by what its experts gave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

__all__ = ["block_of", "dense_weights", "given", "n_experts_of", "replayed", "taken", "unfaithful"]


def n_experts_of(module: Any) -> int:
    """How many experts a module holds, as one tensor of all their weights; 0 where it is no such module."""
    stacked = {one.weight.shape[0] for one in module.modules() if "weight" in one and one.weight.ndim >= 3}
    return stacked.pop() if len(stacked) == 1 else 0


def given(args: tuple[Any, ...], output: Any) -> tuple[mx.array, mx.array] | None:
    """(rows [..., d], which experts [..., chosen]) that experts are called with; None for another call."""
    if len(args) != 2 or not all(isinstance(one, mx.array) for one in (*args, output)):
        return None
    rows, chosen = args
    if not mx.issubdtype(chosen.dtype, mx.integer) or rows.shape[:-1] != chosen.shape[:-1]:
        return None
    return (rows, chosen) if output.shape == (*chosen.shape, rows.shape[-1]) else None


def block_of(path: str) -> str:
    """Path of the module that calls these experts and adds up what they give."""
    return path.rpartition(".")[0]


def replayed(block: Any, read: tuple[Any, ...], experts: Any) -> Callable[[mx.array], mx.array]:
    """What a block makes of what it was given, as a function of what its experts gave."""

    def call(gave: mx.array) -> mx.array:
        own = type(experts)
        experts.__class__ = type(own.__name__, (own,), {"__call__": lambda *_: gave})
        try:
            output: Any = block(*read)
        finally:
            experts.__class__ = own
        return output[0] if isinstance(output, tuple) else output

    return call


def taken(call: Callable[[mx.array], mx.array], gave: mx.array) -> mx.array:
    """By how much a block takes each output of its experts, [..., chosen]. `call`: what the block gives, as a function of
    what its experts gave [..., chosen, d]: linear in it, and each channel by itself, which `unfaithful` tries."""
    gave = mx.stop_gradient(gave)
    chosen, width = gave.shape[-2:]
    if chosen > width:
        raise ValueError("there are more experts to a row than channels")
    each = mx.broadcast_to(mx.eye(chosen, width, dtype=gave.dtype), gave.shape)
    _, [moved] = mx.jvp(call, [gave], [each])
    return moved[..., :chosen].reshape(gave.shape[:-1])


def dense_weights(chosen: mx.array, weights: mx.array, n_experts: int) -> mx.array:
    """[..., expert]: 0 for experts that a row does not go to."""
    none = mx.zeros((*chosen.shape[:-1], n_experts), weights.dtype)
    return mx.put_along_axis(none, chosen.astype(mx.int32), weights, axis=-1)


def unfaithful(
    experts: Callable[[mx.array, mx.array], mx.array],
    call: Callable[[mx.array], mx.array],
    rows: mx.array,
    dense: mx.array,
    gave: mx.array,
) -> float:
    """How far what a block makes of its experts' outputs is from the sum of what each expert gives alone, by its weight
    (relative). `dense`: [..., expert]."""
    from_experts = call(gave).astype(mx.float32) - call(mx.zeros_like(gave)).astype(mx.float32)
    total = mx.zeros(rows.shape, mx.float32)
    for expert in range(dense.shape[-1]):
        if dense[..., expert].any().item():
            alone = experts(rows, mx.full((*rows.shape[:-1], 1), expert, mx.uint32))[..., 0, :]
            total = total + alone.astype(mx.float32) * dense[..., expert : expert + 1].astype(mx.float32)
    off = mx.abs(total - from_experts.reshape(total.shape)).max() / mx.maximum(mx.abs(total).max(), 1e-30)
    return float(off)
