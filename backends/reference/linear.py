"""Linear maps and norms, the only modules that hold weights of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...protos.tensors import Array

__all__ = ["LayerNorm", "Linear", "Norm", "RmsNorm"]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """x·W + b."""

    weight: Array
    """[d_in, d_out]."""
    bias: Array | None = None
    """[d_out]."""

    def __call__(self, x: Array) -> Array:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm:
    """x / rms(x) · w. Gemma's checkpoints hold w − 1; `families` adds the 1."""

    weight: Array
    """[width]."""
    eps: float

    def __call__(self, x: Array) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + self.eps) * self.weight


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm:
    """(x − mean(x)) / std(x) · w + b."""

    weight: Array
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        centred = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self.eps) * self.weight + self.bias


Norm = RmsNorm | LayerNorm
