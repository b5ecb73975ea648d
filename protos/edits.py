"""The closed set of edits: plain values that say how a tensor at a site changes.

`h` is one row of the site (one token), its last axis the site's width; at `q k v z` every head is a row of its own.
`units` picks coordinates of the last axis, `heads` picks heads; the edit then acts on that part alone, and widths
(of vectors, directions, replacement rows) are those of the part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import InvalidArgument
from .latents import Latents
from .numbers import finite, indices
from .tensors import FLOAT_DTYPES, Tensor, narrowed, require_finite

__all__ = [
    "Add",
    "Affine",
    "Clamp",
    "Constant",
    "Edit",
    "FromInput",
    "Inline",
    "Latents",
    "LowRank",
    "Noise",
    "ProjectOut",
    "Replace",
    "Scale",
    "Source",
    "Stored",
    "Zeros",
    "float_tensor",
]


MAX_AFFINE_RANK = 512


def float_tensor(value: Tensor, what: str, ndim: int | tuple[int, ...] | None = None) -> Tensor:
    """A finite float tensor with an allowed number of axes; raises InvalidArgument otherwise."""
    tensor = Tensor.of(value)
    if tensor.dtype in ("int32", "int64"):
        tensor = Tensor.of(tensor.floats())
    if tensor.dtype not in FLOAT_DTYPES:
        raise InvalidArgument(f"{what} has dtype {tensor.dtype}; allowed: {', '.join(FLOAT_DTYPES)}")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and len(tensor.shape) not in allowed:
        axes = " or ".join(str(n) for n in allowed)
        raise InvalidArgument(f"{what} has shape {list(tensor.shape)}; it needs {axes} axes")
    if 0 in tensor.shape:
        raise InvalidArgument(f"{what} is empty (shape {list(tensor.shape)})")
    require_finite(tensor, what)
    return tensor


def _replacement(value: Tensor, what: str, ndim: tuple[int, ...]) -> Tensor:
    """A float tensor of numbers, or of −inf where nothing shall be said of a value but that it is out."""
    tensor = Tensor.of(value)
    if tensor.dtype in ("int32", "int64"):
        tensor = Tensor.of(tensor.floats())
    if tensor.dtype not in FLOAT_DTYPES or len(tensor.shape) not in ndim or 0 in tensor.shape:
        axes = " or ".join(str(n) for n in ndim)
        raise InvalidArgument(
            f"{what} must be a float tensor of {axes} axes, none of them empty; got {tensor.dtype} of shape {list(tensor.shape)}"
        )
    array = tensor.numpy()
    if np.isnan(array).any() or np.isposinf(array).any():
        raise InvalidArgument(
            f"{what} holds NaN or +infinity; send numbers (−infinity only where a value shall be out)"
        )
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What part of each row an edit touches."""

    units: tuple[int, ...] | None = None
    """Coordinates of the last axis (neurons, residual dimensions; absolute key positions at attn_*)."""
    heads: tuple[int, ...] | None = None
    """Heads, at sites that have them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", indices(self.units, "units"))
        object.__setattr__(self, "heads", indices(self.heads, "heads"))


@dataclass(frozen=True, slots=True)
class Add(_Part):
    """h + alpha·v; with `norm_match`, h + alpha·‖h‖·v/‖v‖ (norms over the last axis of the part)."""

    vector: Tensor
    """[width], or [n_heads, width] at head sites."""
    alpha: float = 1.0
    norm_match: bool = False

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "vector", float_tensor(self.vector, "add.vector", (1, 2)))
        object.__setattr__(self, "alpha", finite(self.alpha, "add.alpha"))
        if self.norm_match and not self.vector.floats().any(axis=-1).all():
            raise InvalidArgument("add.norm_match divides by the norm of a vector that is zero; send a direction")


@dataclass(frozen=True, slots=True)
class Scale(_Part):
    """h·factor."""

    factor: float

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "factor", finite(self.factor, "scale.factor"))


@dataclass(frozen=True, slots=True)
class Zeros:
    """Replace by zeros."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Replace every chosen row by the same values, for example a dataset mean."""

    value: Tensor
    """[width], or [n_heads, width] at head sites; or one number for all. −inf: see Replace."""

    def __post_init__(self) -> None:
        tensor = _replacement(self.value, "replace.constant.value", (0, 1, 2))
        narrowed(tensor.numpy(), "float32", "replace.constant is computed in it")
        object.__setattr__(self, "value", tensor)


@dataclass(frozen=True, slots=True)
class Inline:
    """Replace the chosen rows, in order, by the rows of a tensor sent with the request."""

    value: Tensor
    """The site's own axes (of the part: with `units` these); the row axis has one entry a chosen position. −inf: see Replace."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _replacement(self.value, "replace.inline.value", (2, 3)))


@dataclass(frozen=True, slots=True)
class Stored:
    """Replace the chosen rows, in order, by the rows of a capture kept on the server (`store=true`)."""

    capture_id: str


@dataclass(frozen=True, slots=True)
class FromInput:
    """Replace the chosen rows, in order, by the same site's rows in another input of this request."""

    input: str
    """The other input's name. It runs first, without this hook; only its prompt positions can be used."""
    positions: tuple[int, ...] | None = None
    """Positions in the other input (negative: from its end); None: as this hook names its own, those that it counts from
    the prompt's end (positions=-1, spans from -3) being counted from the other's end too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", indices(self.positions, "replace.from_input.positions", negative=True))


Source = Zeros | Constant | Inline | Stored | FromInput


@dataclass(frozen=True, slots=True)
class Replace(_Part):
    """h becomes the source's row. Source rows pair with the hook's positions in order and must match in number.

    −inf takes a key (`attn_scores`), a token (`logits`) or an expert (`router_logits`) out; it means nothing elsewhere.
    """

    source: Source

    @property
    def takes_out(self) -> bool:
        """Whether values sent along hold −inf."""
        given = self.source.value if isinstance(self.source, (Constant, Inline)) else None
        return given is not None and bool(np.isneginf(given.numpy()).any())


@dataclass(frozen=True, slots=True)
class ProjectOut(_Part):
    """Remove the span of the directions: h − Q·Qᵀh, Q an orthonormal basis computed in float32."""

    directions: Tensor
    """[n, width]; linearly dependent directions are reduced to their span."""

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "directions", float_tensor(self.directions, "project_out.directions", (1, 2)))
        if not self.directions.floats().any():
            raise InvalidArgument("project_out.directions are all zero; send at least one non-zero direction")


@dataclass(frozen=True, slots=True)
class Clamp(_Part):
    """Bound coordinates to [min, max]: along orthonormalised directions, or, without directions, the units themselves."""

    directions: Tensor | None = None
    """[n, width]; made orthonormal in order (Gram-Schmidt, float32), so they must be linearly independent."""
    min: float | None = None
    max: float | None = None

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        if self.directions is not None:
            object.__setattr__(self, "directions", float_tensor(self.directions, "clamp.directions", (1, 2)))
        for name in ("min", "max"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, finite(value, f"clamp.{name}"))
        if self.min is None and self.max is None:
            raise InvalidArgument("clamp needs min, max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidArgument(f"clamp.min {self.min} is above clamp.max {self.max}")


@dataclass(frozen=True, slots=True)
class Noise(_Part):
    """h + std·ε, ε ~ N(0,1): one numpy Philox draw a (seed, site, absolute position), whatever the batch."""

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "std", finite(self.std, "noise.std"))
        if self.std < 0:
            raise InvalidArgument(f"noise.std must be 0 or more, got {self.std}")
        if not 0 <= self.seed < 2**63:
            raise InvalidArgument(f"noise.seed must be in 0 … 2**63−1, got {self.seed}")


@dataclass(frozen=True, slots=True)
class LowRank(_Part):
    """out + alpha·(in·A)·B at a site that a linear module computes: a rank-r weight edit of one request."""

    a: Tensor
    """[d_in, r]: d_in is the width of the linear module's input."""
    b: Tensor
    """[r, d_out]: d_out is the width of the whole site (heads flattened)."""
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "a", float_tensor(self.a, "low_rank.a", 2))
        object.__setattr__(self, "b", float_tensor(self.b, "low_rank.b", 2))
        object.__setattr__(self, "alpha", finite(self.alpha, "low_rank.alpha"))
        if self.a.shape[1] != self.b.shape[0]:
            raise InvalidArgument(
                f"low_rank: a is {list(self.a.shape)} and b is {list(self.b.shape)}; the inner widths must be equal"
            )
        if self.units is not None or self.heads is not None:
            raise InvalidArgument("low_rank edits the whole output; leave out units and heads (zero columns of b)")


@dataclass(frozen=True, slots=True)
class Affine(_Part):
    """h + alpha·((h·A + c)·B): an affine map of rank r that the row itself is put through; at head sites head by head.

    Erasers (LEACE), representation fine-tuning (LoReFT, DiReFT) and affine steering are of this form.
    """

    a: Tensor
    """[width, r]."""
    b: Tensor
    """[r, width]."""
    c: Tensor | None = None
    """[r]; None: zeros."""
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        object.__setattr__(self, "a", float_tensor(self.a, "affine.a", 2))
        object.__setattr__(self, "b", float_tensor(self.b, "affine.b", 2))
        object.__setattr__(self, "alpha", finite(self.alpha, "affine.alpha"))
        rank = self.a.shape[1]
        if self.b.shape != self.a.shape[::-1]:
            raise InvalidArgument(
                f"affine: a is {list(self.a.shape)} and b is {list(self.b.shape)}; a is [width, r], b [r, width]"
            )
        if rank > MAX_AFFINE_RANK:
            raise InvalidArgument(f"affine has rank {rank}; at most {MAX_AFFINE_RANK}: split it into several hooks")
        if self.c is not None:
            object.__setattr__(self, "c", float_tensor(self.c, "affine.c", 1))
            if self.c.shape != (rank,):
                raise InvalidArgument(f"affine.c is {list(self.c.shape)}; of rank {rank} it is [{rank}]")


Edit = Add | Scale | Replace | ProjectOut | Clamp | Noise | LowRank | Latents | Affine
