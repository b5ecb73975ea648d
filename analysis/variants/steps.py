"""What a hook does to the linear module that computes its site, where that is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...protos.edits import Add, Affine, Constant, Edit, LowRank, ProjectOut, Replace, Scale, Zeros
from ...protos.hooks import Hook, Where
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.tensors import Tensor
from .conflicts import Float64
from .linear import Linear

__all__ = ["Step", "step_of"]

_OUTPUTS = {"mlp_out": "w_down", "attn_out": "w_o", "mlp_gate": "w_gate", "mlp_up": "w_up"}
_INPUTS = {"mlp_act": "w_down", "z": "w_o"}
MAX_UNITS = 512
"""Inputs that one hook may scale: the rank of its delta."""


@dataclass(frozen=True, slots=True)
class Step:
    """A change of one weight."""

    weight: str
    on_inputs: bool
    apply: Callable[[Linear], None]


def step_of(hook: Hook, info: ModelInfo) -> Step | str:
    """The step, or why the hook stays."""
    site = Site.parse(hook.site)
    edit = hook.edit
    if hook.where != Where():
        return "it acts at some tokens only, or on a condition"
    if site.layer is None or edit is None:
        return "no weight of a layer computes its site"
    weight = f"{(_OUTPUTS | _INPUTS).get(site.name, '')}.{site.layer}"
    if weight not in {one.name for one in info.weights}:
        return f"no weight computes {site.name} alone"
    if site.name in _INPUTS:
        return _on_inputs(edit, site, weight, info)
    offered = info.site(site.name)
    if offered is None or "low_rank" not in offered.edits:
        return f"in this model a norm lies between {weight.partition('.')[0]} and {site.name}"
    if isinstance(edit, LowRank):
        a, b = _float64(edit.a), edit.alpha * _float64(edit.b)
        return Step(weight, False, lambda linear: linear.read_inputs(a, b))
    if site.name not in ("mlp_out", "attn_out"):
        return f"at {site.name} only low_rank is a change of weights"
    return _on_outputs(edit, weight, offered.at(site.layer)[-1])


def _on_outputs(edit: Edit, weight: str, width: int) -> Step | str:
    if isinstance(edit, Add):
        if edit.norm_match:
            return "its strength depends on the row (norm_match)"
        bias = edit.alpha * _spread(_float64(edit.vector), edit.units, width)
        return Step(weight, False, lambda linear: linear.add_bias(bias))
    if isinstance(edit, ProjectOut):
        rows = np.atleast_2d(_float64(edit.directions))
        q = _spread(_orthonormal(rows), edit.units, width)  # [n, width]
        return Step(weight, False, lambda linear: linear.map_outputs(q.T, -q, np.zeros(len(q))))
    if isinstance(edit, Affine):
        a = _spread(_float64(edit.a).T, edit.units, width).T
        b = _spread(edit.alpha * _float64(edit.b), edit.units, width)
        c = np.zeros(a.shape[1]) if edit.c is None else _float64(edit.c)
        return Step(weight, False, lambda linear: linear.map_outputs(a, b, c))
    return f"{type(edit).__name__} is no affine map of its site"


def _on_inputs(edit: Edit, site: Site, weight: str, info: ModelInfo) -> Step | str:
    factor = _factor(edit)
    if factor is None:
        return f"at {site.name} only scale, and replace by zeros, are changes of weights"
    offered = info.site(site.name)
    widths: tuple[int, ...] = () if offered is None else offered.at(site.layer)
    if not widths:
        return f"this model does not say how wide {site.name} is"
    inside = np.zeros(widths[-1], bool)
    inside[slice(None) if edit.units is None else list(edit.units)] = True
    chosen = np.zeros(widths[0] if len(widths) > 1 else 1, bool)
    chosen[slice(None) if edit.heads is None else list(edit.heads)] = True
    mask = np.outer(chosen, inside)
    flat = mask.ravel()
    if flat.sum() > MAX_UNITS:
        return f"it scales {int(flat.sum()):,} inputs; as a delta that would have a rank above {MAX_UNITS}"
    return Step(weight, True, lambda linear: linear.scale_inputs(flat, factor))


def _factor(edit: Edit) -> float | None:
    if isinstance(edit, Scale):
        return edit.factor
    if isinstance(edit, Replace):
        zero = isinstance(edit.source, Zeros) or (
            isinstance(edit.source, Constant) and not edit.source.value.floats().any()
        )
        return 0.0 if zero else None
    return None


def _spread(rows: Float64, units: tuple[int, ...] | None, width: int) -> Float64:
    """Rows of the part as rows of the whole site."""
    if units is None:
        return rows
    whole = np.zeros((*rows.shape[:-1], width))
    whole[..., list(units)] = rows
    return whole


def _orthonormal(rows: Float64) -> Float64:
    """An orthonormal basis of the rows' span, [n, width]."""
    _, s, vt = np.linalg.svd(rows, full_matrices=False)
    return vt[s > s[0] * np.finfo(np.float32).eps * max(rows.shape)]


def _float64(tensor: Tensor) -> Float64:
    return np.asarray(tensor.numpy(), dtype=np.float64)
