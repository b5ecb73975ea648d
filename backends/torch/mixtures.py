"""Mixtures of experts: what their routers compute, and what their experts are given.

Nothing here knows a rule by which experts are chosen: a router's logits are what its one linear product gives, and go on
through the router's own code; the weights are those that the experts' module is called with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Products", "dense_weights", "given", "n_experts_of", "unfaithful"]


class Products(TorchFunctionMode):
    """While it is entered, linear products are shown to `seen`, which gives what to go on with."""

    def __init__(self, seen: Callable[[Any], Any]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return self._seen(found) if func is functional.linear else found


def n_experts_of(module: nn.Module) -> int:
    """How many experts a module holds: as one tensor of all their weights, or as a list; 0 where it is no such module."""
    stacked = {weight.shape[0] for weight in module.parameters(recurse=False) if weight.ndim >= 3}
    if len(stacked) == 1:
        return stacked.pop()
    return len(module) if isinstance(module, nn.ModuleList) else 0


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(which experts, their weights), each [batch · row, chosen], that experts are called with; None for another call."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    chosen = [value for value in tensors if not value.is_floating_point() and value.ndim == 2]
    weights = [v for v in tensors if v.is_floating_point() and chosen and v.shape == chosen[0].shape]
    return (chosen[0], weights[0]) if len(chosen) == 1 and len(weights) == 1 else None


def dense_weights(chosen: torch.Tensor, weights: torch.Tensor, n_experts: int) -> torch.Tensor:
    """[batch · row, expert]: 0 for experts that a row does not go to."""
    inside = (chosen >= 0) & (chosen < n_experts)
    dense = weights.new_zeros(len(weights), n_experts)
    return dense.scatter_add_(-1, chosen.long().clamp(0, n_experts - 1), weights * inside)


@torch.no_grad()
def unfaithful(module: nn.Module, rows: torch.Tensor, dense: torch.Tensor, gave: torch.Tensor) -> float:
    """How far what experts gave is from the sum of what each gives alone, by its weight (relative)."""
    home = next(module.parameters()).device  # whose weights may wait in main memory between forwards
    rows, dense, gave = rows.to(home), dense.to(home), gave.to(home)
    total = torch.zeros_like(gave, dtype=torch.float64)
    for expert in torch.nonzero(dense.any(0))[:, 0].tolist():
        chosen = torch.full((len(rows), 1), expert, device=rows.device)
        alone = module(rows, chosen, torch.ones_like(chosen, dtype=dense.dtype))
        total += alone.double() * dense[:, expert : expert + 1].double()
    return float((total - gave.double()).abs().max() / total.abs().max().clamp_min(1e-30))
