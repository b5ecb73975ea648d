"""The model's norms, whose scale a gradient may take as constant (rule ln).

MLX looks `__call__` up on the type, so every norm gets a class of its own for good; it asks whether the rule is on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..hooks.rules import LINEAR_NORMS, stand_in
from ..ops import Ops

__all__ = ["Norms"]

Formula = Callable[..., mx.array]


class Norms:
    """All norm modules of one model."""

    def __init__(self, model: Any, ops: Ops) -> None:
        self.ops = ops
        self.linear = False
        """Scales count as constant in the forward that comes."""
        found = [m for m in model.modules() if _is_norm(m)]
        self.formulas = {id(m): _formula(m, ops) for m in found}
        self.modules = found
        for module in found:
            self._own_class(module, self.formulas[id(module)])

    @property
    def known(self) -> bool:
        """Whether every norm has a linear stand-in."""
        return bool(self.modules) and None not in self.formulas.values()

    def _own_class(self, module: Any, formula: Formula | None) -> None:
        own = type(module)

        def call(this: Any, x: mx.array, *more: Any) -> mx.array:
            if more:  # a gate, which no formula here knows
                return own.__call__(this, x, *more)
            if formula is not None and x.dtype == mx.float64:  # the kernel would go through float32
                value = _apply(formula, this, _Differentiable, x)
            else:
                value = own.__call__(this, x)
            if not self.linear or formula is None:
                return value
            return stand_in(self.ops, value, _apply(formula, this, self.ops, x).astype(value.dtype))

        module.__class__ = type(own.__name__, (own,), {"__call__": call})


def _is_norm(module: Any) -> bool:
    name = type(module).__name__
    return ("RMSNorm" in name or "LayerNorm" in name) and isinstance(module.get("weight"), mx.array)


def _formula(module: Any, ops: Ops) -> Formula | None:
    """The formula that gives what the module gives, found by trying; None when there is none, or it cannot be tried."""
    try:
        return _tried(module, ops)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # a norm of another make: no rule ln
        return None


def _tried(module: Any, ops: Ops) -> Formula | None:
    weight = module.weight
    x = (mx.random.normal((2, weight.shape[-1]), key=mx.random.key(0)) * 3 + 1).astype(weight.dtype)
    tolerance = 2e-2 if weight.dtype in (mx.bfloat16, mx.float16) else 1e-4
    wanted = ops.f32(module(x))
    scale: Any = mx.abs(wanted).max().item()
    for formula in LINEAR_NORMS:
        found = ops.f32(_apply(formula, module, ops, x))
        if mx.allclose(found, wanted, rtol=tolerance, atol=tolerance * scale):
            return formula
    return None


def _apply(formula: Formula, module: Any, ops: Any, value: mx.array) -> mx.array:
    def wide(x: mx.array) -> mx.array:
        return x if x.dtype == mx.float64 else x.astype(mx.float32)

    bias = module.get("bias")
    return formula(ops, wide(value), wide(module.weight), None if bias is None else wide(bias), module.eps)


class _Differentiable:
    """The two operations that a norm needs, with its scale part of the gradient."""

    @staticmethod
    def rsqrt(x: mx.array) -> mx.array:
        return mx.rsqrt(x)

    @staticmethod
    def stop(x: mx.array) -> mx.array:
        return x
