"""Losses of tuning as plain functions of torch tensors, so that each can be held against paper."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

__all__ = [
    "breaker_weights",
    "breakers_loss",
    "coherence_loss",
    "preserve_loss",
    "rmu_loss",
    "sparse_loss",
    "task_loss",
]


def task_loss(logits: Any, ids: Any, answer: Any) -> Any:
    """Mean −log p of the answer's tokens: logits [example, pos, vocabulary], ids and answer (bool) [example, pos]."""
    torch: Any = import_module("torch")
    return torch.nn.functional.cross_entropy(logits[:, :-1][answer[:, 1:]], ids[:, 1:][answer[:, 1:]])


def preserve_loss(logits: Any, base_logits: Any, mask: Any) -> Any:
    """Mean KL(base ‖ tuned) in nats over the tokens of a mask [example, pos]."""
    torch: Any = import_module("torch")
    tuned = logits[mask.bool()].log_softmax(-1)
    base = base_logits[mask.bool()].log_softmax(-1)
    return torch.nn.functional.kl_div(tuned, base, reduction="batchmean", log_target=True)


def coherence_loss(pairs: Sequence[tuple[Any, Any, Any]], mask: Any) -> Any:
    """How far what lies outside a circuit has moved: mean of ‖a − a₀‖² / ‖a₀‖² over sites and tokens.

    `pairs`: for each site (a, a₀, outside): activations tuned and base [example, pos, width], and which coordinates lie
    outside [width]. Sites with none outside are left out.
    """
    torch: Any = import_module("torch")
    moved: list[Any] = []
    for tuned, base, outside in pairs:
        if bool(outside.any()):
            difference = (tuned - base)[mask.bool()][:, outside].square().sum(-1)
            size = base[mask.bool()][:, outside].square().sum(-1)
            moved.append(difference / size.clamp_min(torch.finfo(size.dtype).tiny))
    return torch.stack(moved).mean() if moved else mask.new_zeros((), dtype=torch.float32)


def sparse_loss(factors: Sequence[tuple[Any, Any]]) -> Any:
    """Group lasso over the rows of ΔW = B·A: Σ over weights and rows of ‖ΔW row‖, from A [r, d_in] and B [d_out, r].

    A row of zeros has the gradient 0 (a subgradient), so that what has not moved yet can.
    """
    torch: Any = import_module("torch")
    total: Any = 0.0
    for a, b in factors:
        squared = ((b @ (a @ a.T)) * b).sum(-1)
        moved = squared > 0
        total = total + torch.where(moved, squared, torch.ones_like(squared)).sqrt().mul(moved).sum()
    return total


def rmu_loss(
    forget: Any, target: Any, forget_mask: Any, retain: Any, retain_base: Any, retain_mask: Any, weight: float
) -> Any:
    """RMU (Li et al. 2024): mean ‖h − target‖² over forget rows + weight · mean ‖h − h_base‖² over retain rows.

    Rows are [example, pos, d_model], squared distances averaged over d_model as in the published code; target [d_model].
    """  # fmt: skip
    away = (forget - target)[forget_mask.bool()].square().mean()
    kept = (retain - retain_base)[retain_mask.bool()].square().mean()
    return away + weight * kept


def breakers_loss(
    forget: Sequence[tuple[Any, Any]],
    forget_mask: Any,
    retain: Sequence[tuple[Any, Any]],
    retain_mask: Any,
    weights: tuple[float, float],
) -> Any:
    """Circuit breakers (Zou et al. 2024): c_s · mean relu(cos(h, h_base)) + c_r · mean ‖h − h_base‖₂, over layers and tokens.

    `forget`, `retain`: (tuned, base) of each layer, [example, pos, d_model]; `weights`: (c_s, c_r).
    """  # fmt: skip
    torch: Any = import_module("torch")
    cosine = torch.nn.functional.cosine_similarity
    broken = torch.stack(
        [cosine(h[forget_mask.bool()], base[forget_mask.bool()], dim=-1).relu().mean() for h, base in forget]
    ).mean()
    kept = torch.stack([(h - base)[retain_mask.bool()].norm(dim=-1).mean() for h, base in retain]).mean()
    return weights[0] * broken + weights[1] * kept


def breaker_weights(step: int, steps: int, alpha: float) -> tuple[float, float]:
    """(c_s, c_r) at a step of 0 … steps: c_s falls from alpha to alpha/2, c_r rises from 0 to alpha/2, as published."""
    progress = step / (2 * steps)
    return alpha * (1 - progress), alpha * progress
