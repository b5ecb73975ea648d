"""Deltas of variants on PyTorch: added inside linear modules, below their hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence as SequenceOf
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..deltas.at_work import Deltas
from ..deltas.factors import EMBED, UNEMBED, Factors
from ..deltas.placed import Rows, Shares
from ..deltas.weight_table import Linear, linear_of
from ..hooks.points import Seen
from .quantised import QuantisedLinear

__all__ = ["TorchProducts", "take_deltas"]


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """Factors on the device."""

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class _Split:
    """What rows have of parts: see _Step."""

    rows: slice | torch.Tensor | None
    scale: float
    foreign: torch.Tensor | None
    by_rank: torch.Tensor | None
    weights: torch.Tensor | None
    """[row, part] of biases, `scale` apart; None: there is one part."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Some parts' factors side by side, for the rows of all of them."""

    rows: slice | torch.Tensor | None
    """None: all that there are."""
    a: torch.Tensor
    """[d_in, all ranks]."""
    foreign: torch.Tensor | None
    """[row, all ranks]: whether a product is of another part's rows; None: there is one part."""
    by_rank: torch.Tensor | None
    """[all ranks]: strengths, where parts differ. Not in `b`, where what overflows would reach the others: 0 · ∞ is no number."""
    b: torch.Tensor
    """[all ranks, d_out]."""
    scale: float
    """Of all parts."""
    bias: torch.Tensor | None
    """[d_out] or [row, d_out], `scale` apart."""


class TorchProducts:
    """See backends/deltas/placed.py."""

    def prepare(self, factors: Factors, near: torch.Tensor) -> _Ready:
        """See Products."""
        with torch.inference_mode(False):  # gradients are taken through them too
            bias = None if factors.bias is None else _on(factors.bias, near)
            return _Ready(_on(factors.a, near), _on(factors.b, near), bias)

    def device(self, near: torch.Tensor) -> torch.device:
        """See Products."""
        return near.device

    def split(self, shares: Shares, ranks: tuple[int, ...], near: torch.Tensor) -> _Split:
        """See Products."""
        rows, scale = None if shares.rows is None else _chosen(shares.rows, near), shares.scale
        if shares.own is None:
            return _Split(rows, float(shares.scales[0]), None, None, None)
        with torch.inference_mode(False):
            by_part, n = _on(shares.scales, near), torch.tensor(ranks, device=near.device)
            own = torch.from_numpy(shares.own).to(near.device)
            foreign = (~own).repeat_interleave(n, 1)
            if scale is not None:
                return _Split(rows, scale, foreign, None, own.to(by_part.dtype))
            return _Split(rows, 1.0, foreign, by_part.repeat_interleave(n), own * by_part)

    def step(self, factors: SequenceOf[_Ready], split: _Split) -> _Step:
        """See Products."""
        first = factors[0]
        if split.weights is None:
            return _Step(split.rows, first.a, None, None, first.b, split.scale, first.bias)
        with torch.inference_mode(False):
            bias: torch.Tensor | None = None
            if any(one.bias is not None for one in factors):
                none = torch.zeros_like(first.b[0])
                bias = split.weights @ torch.stack([none if one.bias is None else one.bias for one in factors])
            a, b = torch.cat([one.a for one in factors], 1), torch.cat([one.b for one in factors])
            return _Step(split.rows, a, split.foreign, split.by_rank, b, split.scale, bias)

    def beside(self, steps: SequenceOf[_Step]) -> _Step:
        """See Products."""
        with torch.inference_mode(False):
            foreign = [one.foreign for one in steps if one.foreign is not None]
            by_rank: torch.Tensor | None = None
            if any(one.by_rank is not None for one in steps):
                by_rank = torch.cat(
                    [torch.ones_like(one.a[0]) if one.by_rank is None else one.by_rank for one in steps]
                )
            a = torch.cat([one.a for one in steps], 1)
            return replace(steps[0], a=a, foreign=torch.cat(foreign, 1) if foreign else None, by_rank=by_rank)

    def read(self, x: torch.Tensor, step: _Step) -> torch.Tensor:
        """See Products."""
        x = x if step.rows is None else x[step.rows]
        h = x.to(step.a.dtype) @ step.a if x.is_floating_point() else step.a[x]
        h = h if step.by_rank is None else h * step.by_rank
        return h if step.foreign is None else h.masked_fill(step.foreign, 0.0)

    def write(self, y: torch.Tensor, h: torch.Tensor, step: _Step) -> torch.Tensor:
        """See Products. Into y itself, which the module has just made, unless autograd looks on."""
        if torch.is_grad_enabled():
            return _written(y, h, step)
        own = y if step.rows is None else y[step.rows]
        if own.dtype == h.dtype:
            own.addmm_(h, step.b, alpha=step.scale)
        else:
            own.copy_(own.float().addmm_(h, step.b, alpha=step.scale))
        if step.bias is not None:
            own.add_(step.bias, alpha=step.scale)
        return y.index_copy_(0, step.rows, own) if isinstance(step.rows, torch.Tensor) else y

    def columns(self, step: _Step, at: torch.Tensor) -> _Step:
        """See Products."""
        return replace(step, b=step.b[:, at], bias=None if step.bias is None else step.bias[..., at])


def _written(y: torch.Tensor, h: torch.Tensor, step: _Step) -> torch.Tensor:
    change = h @ step.b if step.bias is None else h @ step.b + step.bias
    own = y if step.rows is None else y[step.rows]
    new = torch.add(own, change, alpha=step.scale).to(y.dtype)
    if step.rows is None:
        return new
    if isinstance(step.rows, slice):
        return torch.cat([y[: step.rows.start], new, y[step.rows.stop :]])
    return y.index_copy(0, step.rows, new)


def _on(array: NDArray[Any], near: torch.Tensor) -> torch.Tensor:
    """A CPU multiplies few rows faster in 32 bits than in 16."""
    dtype = torch.float32 if near.device.type == "cpu" and near.dtype.itemsize == 2 else near.dtype
    return torch.from_numpy(np.array(array)).to(near.device, dtype)


def _chosen(rows: Rows, near: torch.Tensor) -> slice | torch.Tensor:
    first, stop = int(rows[0]), int(rows[-1]) + 1
    return slice(first, stop) if stop - first == len(rows) else torch.from_numpy(rows).to(near.device)


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
    return deltas.added(name, rows, y.reshape(-1, y.shape[-1]), source=x).view(y.shape)


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
