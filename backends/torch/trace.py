"""One forward of a PyTorch model as a trace: what every module read and gave, and what attention was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..model.anatomy.trace import Arithmetic, AttentionCall, Trace
from .attention import Attention
from .quantised import QuantisedLinear
from .taps import first_of

__all__ = ["TOLERANCES", "traced"]

TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative: two orders of one sum; in float64 the libraries go through float32 in places."""


@torch.no_grad()
def traced(
    model: nn.Module, attention: Attention, forward: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor
) -> Trace:
    """What one forward over token ids [batch, row] shows. Hooks are gone afterwards."""
    modules = dict(model.named_modules())
    names = {id(module): path for path, module in modules.items()}
    dtype = next(model.parameters()).dtype
    trace = Trace(
        layout=(ids.shape[0], ids.shape[1]),
        numbers=Arithmetic(torch.equal, _distance, TOLERANCES[dtype]),
        lists={
            path: len(module) for path, module in modules.items() if isinstance(module, nn.ModuleList) and len(module)
        },
        linear=frozenset(
            path for path, module in modules.items() if isinstance(module, (nn.Linear, Conv1D, QuantisedLinear))
        ),
        norms=frozenset(path for path, module in modules.items() if "Norm" in type(module).__name__),
        leaves=frozenset(path for path, module in modules.items() if not any(module.children())),
    )

    def witness(module: nn.Module, q: Any, k: Any, v: Any, out: Any, window: int | None) -> None:
        trace.calls.append(AttentionCall(names[id(module)], q.clone(), k.clone(), v.clone(), out.clone(), window))

    attention.witness = witness
    handles = [handle for path, module in modules.items() if path for handle in _watch(trace, path, module)]
    try:
        trace.rows = forward(ids).clone()
    finally:
        attention.witness = None
        for handle in handles:
            handle.remove()
    return trace


def _watch(trace: Trace, path: str, module: nn.Module) -> tuple[Any, ...]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        if isinstance(read, torch.Tensor):
            trace.note(path, "input", read.detach().clone())

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        gave = first_of(output)
        if isinstance(gave, torch.Tensor):
            trace.note(path, "output", gave.detach().clone())

    return module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
