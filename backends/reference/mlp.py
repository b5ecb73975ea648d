"""The MLP of a layer: plain, gated, or a mixture of gated experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...protos.sites import Site
from ...protos.tensors import Array
from .linear import Linear
from .tap import Tap

__all__ = ["ACTIVATIONS", "Activation", "Experts", "GatedMlp", "Mlp", "PlainMlp", "clipped_swiglu"]

Activation = Callable[[Array], Array]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(x.dtype))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Activation] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
}
"""By the name that configs give them."""


@dataclass(frozen=True, slots=True, eq=False)
class PlainMlp:
    """down(f(up(x))); its one branch is called mlp_gate, as the activation acts on it."""

    gate: Linear
    down: Linear
    activation: Activation

    def __call__(self, x: Array, layer: int, tap: Tap) -> tuple[Array, Array | None]:
        """[pos, d_model] → the output, and what the last linear map read [pos, d_mlp]."""
        gate = tap(Site("mlp_gate", layer), self.gate(x), x)
        act = tap(Site("mlp_act", layer), self.activation(gate))
        return self.down(act), act


@dataclass(frozen=True, slots=True, eq=False)
class GatedMlp:
    """down(f(gate(x)) · up(x))."""

    gate: Linear
    up: Linear
    down: Linear
    activation: Activation

    def __call__(self, x: Array, layer: int, tap: Tap) -> tuple[Array, Array | None]:
        """[pos, d_model] → the output, and what the last linear map read [pos, d_mlp]."""
        gate = tap(Site("mlp_gate", layer), self.gate(x), x)
        up = tap(Site("mlp_up", layer), self.up(x), x)
        act = tap(Site("mlp_act", layer), self.activation(gate) * up)
        return self.down(act), act


def clipped_swiglu(gate: Array, up: Array, alpha: float, limit: float) -> Array:
    """gpt-oss: the gate is bounded above, the linear branch on both sides and shifted by one."""
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return gate * _sigmoid(alpha * gate) * (up + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """Each token goes to its `n_active` best experts, weighted by a softmax over their router logits alone."""

    router: Linear
    experts: tuple[tuple[Linear, Linear, Linear], ...]
    """(gate, up, down) of each."""
    n_active: int
    alpha: float
    limit: float

    def __call__(self, x: Array, layer: int, tap: Tap) -> tuple[Array, Array | None]:
        """[pos, d_model] → the output, and None: no single linear map computes it."""
        logits = tap(Site("router_logits", layer), self.router(x))
        weights = tap(Site("expert_weights", layer), self._weights(logits))
        out = np.zeros_like(x)
        for expert, (gate, up, down) in enumerate(self.experts):
            out += weights[:, expert, None] * down(clipped_swiglu(gate(x), up(x), self.alpha, self.limit))
        return out, None

    def _weights(self, logits: Array) -> Array:
        """[pos, expert], 0 for the unchosen."""
        chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : self.n_active]
        best = np.take_along_axis(logits, chosen, axis=-1)
        shares = np.exp(best - best.max(axis=-1, keepdims=True))
        dense = np.zeros_like(logits)
        np.put_along_axis(dense, chosen, shares / shares.sum(axis=-1, keepdims=True), axis=-1)
        return dense


Mlp = PlainMlp | GatedMlp | Experts
