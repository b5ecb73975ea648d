"""Deltas of variants on PyTorch: added inside linear modules, below their hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence as SequenceOf
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..deltas.at_work import Deltas
from ..deltas.factors import EMBED, UNEMBED, Factors
from ..deltas.weight_table import Linear, linear_of
from ..hooks.points import Seen
from .quantised import QuantisedLinear

__all__ = ["TorchProducts", "columns_of", "take_deltas"]

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """Factors on the device, in the model's dtype."""

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Together:
    """Several parts' factors side by side, for the rows of all of them."""

    a: torch.Tensor
    """[d_in, all ranks]."""
    b: torch.Tensor
    """[all ranks, d_out]."""
    scales: torch.Tensor | None
    """[all ranks], of its part each; None: 1. Not in `b`, where what overflows would reach the others: 0 · ∞ is no number."""
    foreign: torch.Tensor
    """[row, all ranks]: whether a product is of another part's rows."""
    at: torch.Tensor | None
    """The rows; None: all that there are."""
    biases: tuple[torch.Tensor, torch.Tensor] | None
    """[row, part] scales and [part, d_out]."""


class TorchProducts:
    """See backends/deltas/at_work.py."""

    def prepare(self, factors: Factors, near: torch.Tensor) -> _Ready:
        """See Products."""
        with torch.inference_mode(False):  # gradients are taken through them too
            bias = None if factors.bias is None else _on(factors.bias, near)
            return _Ready(_on(factors.a, near), _on(factors.b, near), bias)

    def one(self, x: torch.Tensor, y: torch.Tensor, factors: _Ready, scale: float, rows: Rows | None) -> torch.Tensor:
        """See Products."""
        if rows is None:
            return _added(y, _read(x, factors.a), factors, scale)
        first, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - first == len(rows):
            own = y[first:stop]
            new = _added(own, _read(x[first:stop], factors.a), factors, scale)
            return y if not torch.is_grad_enabled() else torch.cat([y[:first], new, y[stop:]])
        at = torch.from_numpy(rows).to(y.device)
        change = _read(x[at], factors.a) @ factors.b
        change = change if factors.bias is None else change + factors.bias
        return _to_rows(y, at, change, scale)

    def several(self, x: torch.Tensor, y: torch.Tensor, together: _Together) -> torch.Tensor:
        """See Products."""
        h = _read(x if together.at is None else x[together.at], together.a)
        h = (h if together.scales is None else h * together.scales).masked_fill(together.foreign, 0.0)
        if together.at is None and together.biases is None:
            return torch.addmm(y, h, together.b) if torch.is_grad_enabled() else y.addmm_(h, together.b)
        change = h @ together.b
        if together.biases is not None:
            change = torch.addmm(change, *together.biases)
        at = torch.arange(len(y), device=y.device) if together.at is None else together.at
        return _to_rows(y, at, change, 1.0)

    def together(self, parts: SequenceOf[tuple[_Ready, float, Rows]], near: torch.Tensor) -> _Together:
        """See Products."""
        rows = np.unique(np.concatenate([own for _, _, own in parts]))
        ranks = [factors.a.shape[1] for factors, _, _ in parts]
        foreign = np.ones((len(rows), sum(ranks)), dtype=bool)
        scales = np.zeros((len(rows), len(parts)), dtype=np.float32)
        by_rank = np.repeat(np.array([scale for _, scale, _ in parts], dtype=np.float32), ranks)
        start = 0
        for index, ((_, scale, own), rank) in enumerate(zip(parts, ranks, strict=True)):
            at = np.searchsorted(rows, own)
            foreign[at, start : start + rank] = False
            scales[at, index] = scale
            start += rank
        with torch.inference_mode(False):
            none = torch.zeros(near.shape[1], dtype=near.dtype, device=near.device)
            biases = [none if factors.bias is None else factors.bias for factors, _, _ in parts]
            some = any(factors.bias is not None for factors, _, _ in parts)
            return _Together(
                torch.cat([factors.a for factors, _, _ in parts], 1),
                torch.cat([factors.b for factors, _, _ in parts]),
                None if all(scale == 1.0 for _, scale, _ in parts) else _on(by_rank, near),
                torch.from_numpy(foreign).to(near.device),
                None if len(rows) == len(near) else torch.from_numpy(rows).to(near.device),
                (_on(scales, near), torch.stack(biases)) if some else None,
            )


def _on(array: NDArray[Any], near: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(near.device, near.dtype)


def _read(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """x·A; of token ids, the rows of A that they choose."""
    return x @ a if x.is_floating_point() else a[x]


def _added(y: torch.Tensor, h: torch.Tensor, factors: _Ready, scale: float) -> torch.Tensor:
    """y + scale · (h·B + bias): into y itself, which the module has just made, unless autograd looks on."""
    if torch.is_grad_enabled():
        y = torch.addmm(y, h, factors.b, alpha=scale)
        return y if factors.bias is None else y + scale * factors.bias
    y.addmm_(h, factors.b, alpha=scale)
    return y if factors.bias is None else y.add_(factors.bias, alpha=scale)


def _to_rows(y: torch.Tensor, at: torch.Tensor, change: torch.Tensor, scale: float) -> torch.Tensor:
    if torch.is_grad_enabled():
        return y.index_add(0, at, change, alpha=scale)
    return y.index_add_(0, at, change, alpha=scale)


def take_deltas(model: Any, seen: Mapping[tuple[str, str], Seen], deltas: Deltas) -> dict[str, Linear]:
    """See Backend.take_deltas."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    paths = {module: path for path, module in modules.items()}
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found: dict[str, Linear] = {}
    for path, module in modules.items():
        if module is not head and type(module) in (nn.Linear, Conv1D, QuantisedLinear):
            one = linear_of(path, seen, bias=getattr(module, "bias", None) is not None)
            found.update({} if one is None else {path: one})
    if type(head) in (nn.Linear, QuantisedLinear):
        found[UNEMBED] = Linear(paths[head], head.in_features, head.out_features, head.bias is not None)
    scale = None if embedding is None else _embedding_scale(embedding)
    if embedding is not None and scale is not None:
        found[EMBED] = Linear(paths[embedding], *embedding.weight.shape, scale=scale)
    for name, linear in found.items():
        module: Any = modules[linear.path]
        module.forward = partial(_forward, deltas, name, module.forward)
    return found


def _forward(deltas: Deltas, name: str, stock: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    y = stock(x, *args, **kwargs)
    if not deltas.active:
        return y
    rows = x.reshape(-1) if name == EMBED else x.reshape(-1, x.shape[-1])
    return deltas.added(name, rows, y.reshape(-1, y.shape[-1])).view(y.shape)


def _embedding_scale(module: nn.Module) -> float | None:
    """How many times its weight's rows an embedding gives; None where it gives something else."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return None
    ids = torch.arange(min(8, len(weight)), device=weight.device)
    with torch.no_grad():
        rows, given = weight[ids].double(), module(ids)
        if not isinstance(given, torch.Tensor) or given.shape != rows.shape:
            return None
        scale = float((given.double() * rows).sum() / (rows * rows).sum().clamp_min(1e-300))
        return scale if torch.allclose(given.double(), rows * scale, rtol=1e-2, atol=1e-12) else None


def columns_of(at: torch.Tensor) -> Callable[[_Ready], _Ready]:
    """The factors of some of the columns of what a module gives."""
    return lambda factors: _Ready(factors.a, factors.b[:, at], None if factors.bias is None else factors.bias[at])
