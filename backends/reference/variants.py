"""A model whose weights are other ones at some rows: what a variant's deltas mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.tensors import Array
from ...protos.variants.delta import Delta
from ...protos.variants.variant import Variant
from ...protos.variants.weight_names import split_weight
from .linear import Linear
from .mlp import PlainMlp
from .model import Layer, ReferenceModel

__all__ = ["with_variant"]

_ATTENTION = {"w_q": "q", "w_k": "k", "w_v": "v", "w_o": "o"}
_MLP = {"w_gate": "gate", "w_up": "up", "w_down": "down"}


@dataclass(frozen=True, slots=True, eq=False)
class _Changed(Linear):
    """x·W + b, and at some rows scale · (x·A·B + bias) more."""

    delta: Delta = field(kw_only=True)
    scale: float = field(kw_only=True)
    rows: NDArray[np.bool_] | None = field(kw_only=True)
    before: Linear = field(kw_only=True)

    def __call__(self, x: Array) -> Array:
        more = x @ self.delta.a.astype(x.dtype) @ self.delta.b.astype(x.dtype)
        if self.delta.bias is not None:
            more = more + self.delta.bias.astype(x.dtype)
        if self.rows is not None:
            more = np.where(self.rows[:, None], more, 0)
        return self.before(x) + x.dtype.type(self.scale) * more


def with_variant(
    model: ReferenceModel, variant: Variant, scale: float = 1.0, rows: NDArray[np.bool_] | None = None
) -> ReferenceModel:
    """The model with a variant's deltas, at the given token rows [pos] (None: all). Its hooks are the caller's to add.

    Raises InvalidArgument for a weight that the model has not, and for rows of the embedding.
    """
    for name, delta in variant.deltas.items():
        model = _with(model, name, delta, scale, rows)
    return model


def _with(
    model: ReferenceModel, name: str, delta: Delta, scale: float, rows: NDArray[np.bool_] | None
) -> ReferenceModel:
    if name == "w_embed":
        if rows is not None:
            raise InvalidArgument("the reference changes the embedding at every row")
        dtype = model.embedding.dtype
        change = delta.a.astype(dtype) @ delta.b.astype(dtype)
        if delta.bias is not None:
            change = change + delta.bias.astype(dtype)
        return replace(model, embedding=model.embedding + dtype.type(scale) * change)
    if name == "w_unembed":
        return replace(model, unembedding=_changed(model.unembedding, delta, scale, rows))
    kind, index = split_weight(name)
    if index is None or not 0 <= index < len(model.layers):
        raise InvalidArgument(f"the reference has no weight {name}")
    layers = list(model.layers)
    layers[index] = _layer(layers[index], kind, delta, scale, rows)
    return replace(model, layers=tuple(layers))


def _layer(layer: Layer, kind: str, delta: Delta, scale: float, rows: NDArray[np.bool_] | None) -> Layer:
    whole: Any = layer.attention if kind in _ATTENTION else layer.mlp
    own = {**_ATTENTION, **_MLP}[kind]
    if isinstance(whole, PlainMlp) and kind == "w_up":
        own = "gate"  # its one branch
    if not hasattr(whole, own):
        raise InvalidArgument(f"the reference has no weight {kind} in a {type(whole).__name__}")
    changed = replace(whole, **{own: _changed(getattr(whole, own), delta, scale, rows)})
    return replace(layer, **{"attention" if kind in _ATTENTION else "mlp": changed})


def _changed(linear: Linear, delta: Delta, scale: float, rows: NDArray[np.bool_] | None) -> _Changed:
    return _Changed(linear.weight, linear.bias, delta=delta, scale=scale, rows=rows, before=linear)
