"""What can be done to a circuit's output columns: each a low-rank change of w_o and w_down with zeros outside the circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ....clients.requests.prompts import Prompt
from ....protos.errors import InvalidArgument
from ....protos.variants.delta import Delta
from ..erase import Eraser
from ..fact import Fact
from ..writers import Writer

__all__ = ["Erase", "Mean", "Orthogonalise", "ProjectOut", "Retarget", "Scale", "Transform"]

Floats = NDArray[np.float64]
MAX_RANK = 512


@dataclass(frozen=True, slots=True)
class Scale:
    """The columns times a factor; 0 knocks the circuit out."""

    factor: float

    def delta(self, one: Writer, columns: NDArray[np.int64]) -> Delta:
        """(f − 1)·W on the columns; its rank is their number."""
        return _columns(one, columns, self.factor - 1)


@dataclass(frozen=True, slots=True, eq=False)
class ProjectOut:
    """The circuit writes nothing along some directions [n, d_model] any more."""

    directions: Any

    def delta(self, one: Writer, columns: NDArray[np.int64]) -> Delta:
        """−Q Qᵀ W on the columns, Q an orthonormal basis of the directions."""
        given = np.atleast_2d(np.asarray(self.directions, dtype=np.float64))
        if given.shape[1] != len(one.weight):
            raise InvalidArgument(f"directions are {given.shape[1]} wide, {one.name} writes {len(one.weight)} numbers")
        _, strengths, basis = np.linalg.svd(given, full_matrices=False)
        Q = basis[strengths > 1e-9 * max(strengths[0], 1e-300)]
        return Delta(_among(one, columns, Q.T), -Q)


@dataclass(frozen=True, slots=True, eq=False)
class Erase:
    """LEACE folded into what the circuit writes: y → y − L R (y − μ), fitted to rows of what it writes."""

    eraser: Eraser

    def delta(self, one: Writer, columns: NDArray[np.int64]) -> Delta:
        """−L R W on the columns, with L R μ as bias."""
        L, R = self.eraser.left, self.eraser.right
        if R.shape[1] != len(one.weight):
            raise InvalidArgument(f"the eraser is of {R.shape[1]} coordinates, {one.name} writes {len(one.weight)}")
        return Delta(_among(one, columns, R.T), -L.T, L @ (R @ self.eraser.mean))


@dataclass(frozen=True, slots=True)
class Mean:
    """What the circuit writes becomes its mean over reference prompts."""

    reference: Sequence[Prompt]

    def delta(self, one: Writer, columns: NDArray[np.int64], mean: Floats) -> Delta:
        """−W on the columns, W·mean of what they read [d_in] as bias."""
        found = _columns(one, columns, -1.0)
        return Delta(found.a, found.b, one.weight[:, columns] @ mean[columns])


@dataclass(frozen=True, slots=True, eq=False)
class Orthogonalise:
    """A direction is taken out of every writer, the circuit's and all others'."""

    direction: ArrayLike


@dataclass(frozen=True, slots=True)
class Retarget:
    """Facts are rewritten in the circuit's own columns of w_down: keys are read there, and nowhere else."""

    facts: Sequence[Fact]


Transform = Scale | ProjectOut | Erase | Mean | Orthogonalise | Retarget


def _columns(one: Writer, columns: NDArray[np.int64], factor: float) -> Delta:
    """factor·W on the columns, zero elsewhere, a rank a column."""
    if len(columns) > MAX_RANK:
        raise InvalidArgument(
            f"{len(columns)} columns of {one.name} are a change of rank {len(columns)}, and a weight's is at most {MAX_RANK}; scale the "
            "units by hooks, or take a smaller circuit"
        )
    a = np.zeros((one.weight.shape[1], len(columns)))
    a[columns, np.arange(len(columns))] = 1.0
    return Delta(a, factor * one.weight[:, columns].T)


def _among(one: Writer, columns: NDArray[np.int64], outputs: Floats) -> Floats:
    """[d_in, r]: Wᵀ·outputs on the columns, zero elsewhere."""
    found = np.zeros((one.weight.shape[1], outputs.shape[1]))
    found[columns] = one.weight[:, columns].T @ outputs
    return found
