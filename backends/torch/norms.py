"""The model's norms: their linear stand-ins for rule ln, and float64 in float64 models, where transformers rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..hooks.rules import LINEAR_NORMS, stand_in
from ..ops import Ops

__all__ = ["Norms"]


class Norms:
    """All norm modules of one model."""

    def __init__(self, model: nn.Module, ops: Ops) -> None:
        self.ops = ops
        self.modules = [m for m in model.modules() if _is_norm(m)]
        self.formulas = {id(m): _formula(m, ops) for m in self.modules}
        self.handles: list[RemovableHandle] = []
        for module in self.modules:
            formula = self.formulas[id(module)]
            if formula is not None and module.weight.dtype == torch.float64:  # transformers' own goes through float32
                cast("Any", module).forward = partial(_apply, formula, module, _Differentiable)

    @property
    def known(self) -> bool:
        """Whether every norm has a linear stand-in."""
        return bool(self.modules) and None not in self.formulas.values()

    def attach(self) -> None:
        """Let gradients take every norm's scale as constant, until `detach`."""
        self.handles = [m.register_forward_hook(self._stand_in, prepend=True) for m in self.modules]

    def detach(self) -> None:
        """As it was."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _stand_in(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        formula = self.formulas[id(module)]
        assert formula is not None
        return stand_in(self.ops, output, _apply(formula, module, self.ops, args[0]).to(output.dtype))


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__
    return ("RMSNorm" in name or "LayerNorm" in name) and isinstance(getattr(module, "weight", None), torch.Tensor)


def _eps(module: Any) -> float:
    [name] = [n for n in ("variance_epsilon", "eps", "epsilon") if hasattr(module, n)]
    return float(getattr(module, name))


def _formula(module: Any, ops: Ops) -> Callable[..., torch.Tensor] | None:
    """The formula that gives what the module gives, found by trying; None when there is none, or it cannot be tried."""
    try:
        return _tried(module, ops)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # a norm of another make: no rule ln
        return None


def _tried(module: Any, ops: Ops) -> Callable[..., torch.Tensor] | None:
    weight = module.weight.detach()
    x = (torch.randn(2, weight.shape[-1], generator=torch.Generator().manual_seed(0)) * 3 + 1).to(weight)
    tolerance = 2e-2 if weight.dtype in (torch.bfloat16, torch.float16) else 1e-4
    with torch.no_grad():
        wanted = module(x).double()
        for formula in LINEAR_NORMS:
            found = _apply(formula, module, ops, x).double()
            if torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())):
                return formula
    return None


def _apply(formula: Callable[..., Any], module: Any, ops: Any, value: torch.Tensor) -> torch.Tensor:
    def wide(x: torch.Tensor) -> torch.Tensor:
        return x if x.dtype == torch.float64 else x.float()

    bias = getattr(module, "bias", None)
    return formula(ops, wide(value), wide(module.weight), None if bias is None else wide(bias), _eps(module))


class _Differentiable:
    """The two operations that a norm needs, with its scale part of the gradient."""

    @staticmethod
    def rsqrt(x: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(x)

    @staticmethod
    def stop(x: torch.Tensor) -> torch.Tensor:
        return x
