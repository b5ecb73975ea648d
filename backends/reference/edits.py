"""What each edit does to the rows it reaches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    Inline,
    Latents,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Zeros,
)
from ...protos.errors import InvalidArgument
from ...protos.sites import HEAD_SITES, Site
from ...protos.tensors import Array, Tensor
from ..bases import gram_schmidt, span_basis
from ..noise import noise_row
from ..saes.sae import Sae
from .latents import edit_latents, sae_named

__all__ = ["MASKED", "Around", "edit_rows"]

MASKED = {"attn_scores": -np.inf, "attn_probs": 0.0}
"""What attention sites hold at keys that a query cannot see. Edits never reach those."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Around:
    """What an edit needs to know of the rows besides their values."""

    site: Site
    positions: Array
    """[row], absolute."""
    visible: Array | None = None
    """[row, key], bool, at attention sites."""
    linear_input: Array | None = None
    """[row, d_in]: what the linear module behind the site read."""
    source: Array | None = None
    """[row, …]: what `replace` brings, unless it says so itself."""
    saes: Mapping[str, Sae] = field(default_factory=dict[str, Sae])


def edit_rows(edit: Edit, h: Array, around: Around) -> Array:
    """The rows [row, (head,) width] after the edit. Raises InvalidArgument where it has no meaning."""
    site = around.site
    if site.name == "expert_weights":
        raise InvalidArgument(f"{site} can be captured, not edited; it follows from router_logits, which can be")
    if edit.heads is not None and site.name not in HEAD_SITES:
        raise InvalidArgument(f"{site} has no heads")
    if isinstance(edit, LowRank):
        return _low_rank(edit, h, around)
    if isinstance(edit, Latents):
        return edit_latents(edit, sae_named(around.saes, edit.sae), h)
    if around.visible is None:
        return _edit_part(edit, h, around)
    _check_at_attention(edit, site)
    visible = around.visible[:, None, :]
    if site.name == "attn_scores" and not isinstance(edit, Replace):
        visible = visible & (h != -np.inf)  # a key that an earlier hook took out stays out
    return np.where(visible, _edit_part(edit, np.where(visible, h, 0), around), MASKED[site.name])


def _check_at_attention(edit: Edit, site: Site) -> None:
    """The key axis grows with the sequence, so nothing that spans it whole is defined."""
    allowed = (
        isinstance(edit, Scale)
        or (isinstance(edit, Add) and edit.units is not None and not edit.norm_match)
        or (isinstance(edit, Clamp) and edit.directions is None)
        or (isinstance(edit, Replace) and not _spans_keys(edit))
    )
    if not allowed:
        raise InvalidArgument(
            f"{site} takes scale, add with units, clamp without directions, and replace by zeros, rows or numbers; "
            f"not this {type(edit).__name__}"
        )


def _spans_keys(edit: Replace) -> bool:
    return isinstance(edit.source, Constant) and edit.units is None and bool(edit.source.value.shape)


def _low_rank(edit: LowRank, h: Array, around: Around) -> Array:
    """out + alpha·(in·A)·B."""
    if around.linear_input is None:
        raise InvalidArgument(f"no single linear module computes {around.site}, so low_rank has no meaning there")
    needed = around.linear_input.shape[1], int(np.prod(h.shape[1:]))
    if (edit.a.shape[0], edit.b.shape[1]) != needed:
        raise InvalidArgument(f"low_rank is {edit.a.shape[0]} → {edit.b.shape[1]}, {around.site} needs {needed}")
    change = around.linear_input @ _floats(edit.a, h) @ _floats(edit.b, h)
    return h + edit.alpha * change.reshape(h.shape)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """The heads and units that an edit is about."""

    at: tuple[Array, ...]
    """Where they lie in the rows, as numpy indexes an open mesh."""
    width: int
    """How many units the edit names."""
    held: Array
    """Which of the named ones exist: a key yet to come is one that no query sees."""


def _part(edit: Edit, h: Array, around: Around) -> _Part:
    units: Array = np.array(range(h.shape[-1]) if edit.units is None else edit.units)
    held = np.flatnonzero(units < h.shape[-1])
    if len(held) < len(units) and around.visible is None:
        raise InvalidArgument(f"units {edit.units} are outside {around.site}, which is {h.shape[-1]} wide")
    axes: list[Array] = [np.arange(len(h)), units[held]]
    if h.ndim == 3:
        heads: Array = np.array(range(h.shape[1]) if edit.heads is None else edit.heads)
        if heads.max() >= h.shape[1]:
            raise InvalidArgument(f"heads {edit.heads} are outside {around.site}, which has {h.shape[1]}")
        axes.insert(1, heads)
    return _Part(np.ix_(*axes), len(units), held)


def _edit_part(edit: Edit, h: Array, around: Around) -> Array:
    """Cut out the part, edit it, and put it back."""
    part = _part(edit, h, around)
    edited = h.copy()
    edited[part.at] = _edit(edit, h[part.at], part, h, around)
    return edited


def _edit(edit: Edit, x: Array, part: _Part, h: Array, around: Around) -> Array:
    """The part x of the rows h, after the edit."""
    if isinstance(edit, Add):
        vector = _vector(edit.vector, x, part)
        return x + edit.alpha * (_matched(vector, x) if edit.norm_match else vector)
    if isinstance(edit, Scale):
        return x * edit.factor
    if isinstance(edit, ProjectOut):
        basis = span_basis(_directions(edit.directions, x)).astype(x.dtype)
        return x - x @ basis.T @ basis
    if isinstance(edit, Clamp):
        if edit.directions is None:
            return np.clip(x, edit.min, edit.max)
        basis = gram_schmidt(_directions(edit.directions, x)).astype(x.dtype)
        coordinates = x @ basis.T
        return x + (np.clip(coordinates, edit.min, edit.max) - coordinates) @ basis
    if isinstance(edit, Noise):
        draws = [noise_row(edit.seed, around.site, int(p), h.shape[1:]) for p in around.positions]
        return x + edit.std * np.reshape(draws, h.shape)[part.at].astype(x.dtype)
    if isinstance(edit, Affine):
        if edit.a.shape[0] != x.shape[-1]:
            raise InvalidArgument(f"affine.a takes rows {edit.a.shape[0]} wide, the part is {x.shape[-1]} wide")
        inner = x @ _floats(edit.a, x) + (0 if edit.c is None else _floats(edit.c, x))
        return x + edit.alpha * (inner @ _floats(edit.b, x))
    assert isinstance(edit, Replace)
    if isinstance(edit.source, Zeros):
        return np.zeros_like(x)
    if isinstance(edit.source, Constant):
        return np.broadcast_to(_vector(edit.source.value, x, part), x.shape)
    assert around.source is not None
    if not isinstance(edit.source, Inline):
        return _same_shape(around.source, h, around)[part.at]
    full = np.zeros((*x.shape[:-1], part.width), x.dtype)
    return _same_shape(around.source, full, around)[..., part.held]


def _same_shape(source: Array, rows: Array, around: Around) -> Array:
    if source.shape != rows.shape:
        raise InvalidArgument(
            f"replace brings rows of {list(source.shape[1:])}, at {around.site} it needs {list(rows.shape[1:])}"
        )
    return source.astype(rows.dtype)


def _vector(tensor: Tensor, x: Array, part: _Part) -> Array:
    """A vector of the part: [width], or [head, width] with one row a head of the part; or one number."""
    whole = (*x.shape[1:-1], part.width)
    if not tensor.shape:
        return _floats(tensor, x)
    if tensor.shape not in (whole[-1:], whole):
        raise InvalidArgument(f"the vector is {list(tensor.shape)}, the part needs {list(whole)}")
    return _floats(tensor, x)[..., part.held]


def _matched(vector: Array, x: Array) -> Array:
    """The vector's direction with the length of each row."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    if not length.all():
        raise InvalidArgument("norm_match divides by the vector's norm, which is zero for some head; send directions")
    return np.linalg.norm(x, axis=-1, keepdims=True) * vector / length


def _directions(tensor: Tensor, x: Array) -> Array:
    if tensor.shape[-1] != x.shape[-1]:
        raise InvalidArgument(f"directions are {tensor.shape[-1]} wide, the part is {x.shape[-1]} wide")
    return tensor.floats()


def _floats(tensor: Tensor, like: Array) -> Array:
    return tensor.floats().astype(like.dtype)
