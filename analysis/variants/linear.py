"""A linear module under changes of what goes in and what comes out, kept as a delta of what it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...protos.tensors import Array
from ...protos.variants.delta import Delta
from .conflicts import Float64

__all__ = ["Linear"]


@dataclass(slots=True)
class Linear:
    """y = x·W + b with changes so far: W [d_in, d_out] and b [d_out] as they are now, in float64."""

    weight: Float64
    bias: Float64
    inputs: Float64
    """[d_in]: what each input has been multiplied with."""
    factors: list[tuple[Float64, Float64]] = field(default_factory=list[tuple[Float64, Float64]])
    """A [d_in, r] and B [r, d_out] of each change."""
    added: Float64 | None = None
    """[d_out], of the bias."""

    @classmethod
    def of(cls, weight: Array, bias: Array | None, delta: Delta | None) -> Linear:
        """A module's own numbers, and the delta that it has already."""
        d_in, d_out = int(weight.shape[0]), int(weight.shape[1])
        own = np.zeros(d_out) if bias is None else bias.astype(np.float64)
        made = cls(weight.astype(np.float64), own, np.ones(d_in), added=np.zeros(d_out))
        if delta is not None:
            made.add(delta.a.astype(np.float64), delta.b.astype(np.float64))
            if delta.bias is not None:
                made.add_bias(delta.bias.astype(np.float64))
        return made

    def add(self, a: Float64, b: Float64) -> None:
        """W + A·B."""
        self.weight = self.weight + a @ b
        self.factors.append((a, b))

    def add_bias(self, bias: Float64) -> None:
        """b + bias."""
        assert self.added is not None
        self.bias, self.added = self.bias + bias, self.added + bias

    def scale_inputs(self, which: Float64, factor: float) -> None:
        """Inputs `which` (a mask, [d_in]) times a factor: rows of W."""
        rows = np.flatnonzero(which)
        a = np.zeros((len(which), len(rows)))
        a[rows, np.arange(len(rows))] = 1.0
        self.inputs = np.where(which, self.inputs * factor, self.inputs)
        self.add(a, (factor - 1) * self.weight[rows])

    def map_outputs(self, a: Float64, b: Float64, c: Float64) -> None:
        """y + (y·A + c)·B."""
        self.add_bias((self.bias @ a + c) @ b)
        self.add(self.weight @ a, b)

    def read_inputs(self, a: Float64, b: Float64) -> None:
        """y + (x·A)·B, x as it is behind the changes of inputs."""
        self.add(self.inputs[:, None] * a, b)

    def delta(self) -> Delta | None:
        """All changes together; None for none."""
        assert self.added is not None
        if not self.factors and not self.added.any():
            return None
        d_in, d_out = self.weight.shape
        factors = self.factors or [(np.zeros((d_in, 1)), np.zeros((1, d_out)))]
        a, b = np.concatenate([a for a, _ in factors], axis=1), np.concatenate([b for _, b in factors])
        return Delta(a, b, self.added)
