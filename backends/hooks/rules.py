"""The rules of a linearised backward pass (RelP, AttnLRP), over any backend's arrays: values stay, gradients change.

Each rule gives a linear stand-in `lin` for a value `f`; what goes on is stop(f) + (lin − stop(lin)): f to the bit, with
the gradient of lin. Sources: RelP, Jafari et al. 2025 (arXiv 2508.21258); AttnLRP, Achtibat et al. 2024 (arXiv 2402.05602).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..ops import Ops

__all__ = ["ACTIVATIONS", "LINEAR_NORMS", "activation_name", "gated", "stand_in"]

_TANH_SCALE = math.sqrt(2 / math.pi)


def stand_in(ops: Ops, value: Any, lin: Any) -> Any:
    """`value`, with the gradient of `lin`."""
    return ops.stop(value) + (lin - ops.stop(lin))


def _tanh_gate(ops: Ops, x: Any) -> Any:
    return 0.5 * (1.0 + ops.tanh(_TANH_SCALE * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[str, Callable[[Ops, Any], Any]] = {
    "silu": lambda ops, x: ops.sigmoid(x),
    "gelu": lambda ops, x: 0.5 * (1.0 + ops.erf(x * math.sqrt(0.5))),
    "gelu_tanh": _tanh_gate,
}
"""Activation → act(x) / x, which has no pole at 0."""

_NAMES = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def activation_name(config: Any) -> str:
    """The key in ACTIVATIONS of what a config calls its activation, or empty."""
    name = str(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None) or "")
    name = str(getattr(config, "hidden_activation", None) or name or getattr(config, "activation_function", ""))
    name = _NAMES.get(name, name)
    return name if name in ACTIVATIONS else ""


def gated(ops: Ops, activation: str, value: Any, gate: Any, up: Any, *, identity: bool, half: bool) -> Any:
    """act(gate) · up (or act(gate), when `up` is None) as `value` has it, under the identity and half rules."""
    share = ACTIVATIONS[activation](ops, gate)
    acted = gate * (ops.stop(share) if identity else share)
    if up is None:
        lin = acted
    elif half:
        lin = 0.5 * (acted * ops.stop(up) + ops.stop(acted) * up)
    else:
        lin = acted * up
    return stand_in(ops, value, lin)


def _rms(ops: Ops, x: Any, weight: Any, bias: Any, eps: float) -> Any:
    del bias
    return weight * (x * ops.stop(ops.rsqrt((x * x).mean(-1)[..., None] + eps)))


def _rms_plus_one(ops: Ops, x: Any, weight: Any, bias: Any, eps: float) -> Any:
    return _rms(ops, x, 1.0 + weight, bias, eps)


def _layer_norm(ops: Ops, x: Any, weight: Any, bias: Any, eps: float) -> Any:
    centred = x - x.mean(-1)[..., None]
    scaled = weight * (centred * ops.stop(ops.rsqrt((centred * centred).mean(-1)[..., None] + eps)))
    return scaled if bias is None else scaled + bias


LINEAR_NORMS: tuple[Callable[..., Any], ...] = (_rms, _rms_plus_one, _layer_norm)
"""(ops, x, weight, bias, eps) → the norm, linear in x with its scale constant. Which one a model has is found by trying."""
