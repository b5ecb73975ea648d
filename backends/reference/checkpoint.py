"""A checkpoint folder's weights, as linear maps and norms. `unread` tells what no one asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...protos.tensors import Array
from ..model.weights import CheckpointWeights
from .linear import LayerNorm, Linear, Norm, RmsNorm

__all__ = ["Checkpoint"]


class Checkpoint:
    """Weights by name, all brought to one dtype."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self._weights = CheckpointWeights(folder)
        self._dtype = dtype
        index = folder / "model.safetensors.index.json"
        indexed = index.exists() and self._weights.tower is None
        self._names = set[str](json.loads(index.read_text())["weight_map"] if indexed else self._weights.names())
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def unread(self) -> set[str]:
        """Names of the weights that nothing has read."""
        return self._names - self._read

    def array(self, name: str) -> Array:
        """One weight as the checkpoint shapes it. Raises NotFound."""
        self._read.add(name)
        return self._weights.get(name).astype(self._dtype)

    def linear(self, name: str, *, transposed: bool = True) -> Linear:
        """The map of `name`.weight [out, in] (not transposed: [in, out]) and `name`.bias, if there is one."""
        weight = self.array(f"{name}.weight")
        bias = self.array(f"{name}.bias") if f"{name}.bias" in self else None
        return Linear(weight.T if transposed else weight, bias)

    def norm(self, name: str, eps: float, *, plus_one: bool = False) -> Norm:
        """A layer norm where there is a bias, else an rms norm; `plus_one` is added to the weight."""
        weight = self.array(f"{name}.weight") + self._dtype.type(plus_one)
        if f"{name}.bias" in self:
            return LayerNorm(weight, self.array(f"{name}.bias"), eps)
        return RmsNorm(weight, eps)
