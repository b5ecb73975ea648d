"""The deltas of one forward, module by module: what is read of a module's input, and what is added to what it gives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .factors import BoundVariant, Factors

__all__ = ["FEW_ROWS", "NOTHING", "Part", "Placed", "Products", "Rows", "Shares"]

FEW_ROWS = 16
"""Parts of fewer rows are computed together: their factors side by side, with what is not a row's own set to 0."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One variant at one strength, and the rows of this forward that run with it."""

    variant: BoundVariant
    scale: float
    rows: Rows | None
    """Numbers of rows of [batch · row, …], ascending, each once; None: all of them."""

    @property
    def few(self) -> bool:
        """Whether it is computed with others."""
        return self.rows is not None and len(self.rows) < FEW_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Which rows several parts have between them, and whose is whose."""

    rows: Rows | None
    """Of all the parts; None: all that there are."""
    own: NDArray[np.bool_] | None
    """[row, part]; None: there is one part."""
    scales: NDArray[np.float64]
    """[part]."""

    @property
    def scale(self) -> float | None:
        """The one that all parts have."""
        return float(self.scales[0]) if np.all(self.scales == self.scales[0]) else None

    @property
    def alike(self) -> tuple[bytes | None, bool]:
        """The same for shares that are read of the same rows, and both by one part or both by several."""
        return None if self.rows is None else self.rows.tobytes(), self.own is None


class Products(Protocol):
    """A backend's own arithmetic. x [n, d_in] (token ids [n] of the embedding) and y [n, d_out] are flat."""

    def prepare(self, factors: Factors, near: Any) -> Any:
        """The factors on a tensor's device, as precise as its arithmetic there needs."""
        ...

    def device(self, near: Any) -> Hashable:
        """Where a tensor lies, as layers may lie on several devices."""
        ...

    def split(self, shares: Shares, ranks: tuple[int, ...], near: Any) -> Any:
        """The shares on a tensor's device, of parts that have these ranks."""
        ...

    def step(self, factors: SequenceOf[Any], split: Any) -> Any:
        """What `read` and `write` need of some parts at one module, made once for forwards that are alike."""
        ...

    def beside(self, steps: SequenceOf[Any]) -> Any:
        """What `read` needs to read for several modules at once, whose shares are alike."""
        ...

    def read(self, x: Any, step: Any) -> Any:
        """x·A [row, rank], of a step's rows; 0 where it is of another row's part."""
        ...

    def write(self, y: Any, h: Any, step: Any) -> Any:
        """y with scale · (h·B + bias) added at a step's rows; what comes back takes y's place."""
        ...

    def columns(self, step: Any, at: Any) -> Any:
        """The step for some of the columns of what a module gives."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """Some parts at one module."""

    shares: Shares
    made: Any
    rank: int
    """Of all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """What several modules read of one input at once."""

    made: Any
    whose: tuple[tuple[str, int, slice], ...]
    """Path, number of its step, and its columns of what is read."""


@dataclass(slots=True, eq=False)
class Placed:
    """The parts of one forward over `n_rows` rows, and what was made of them."""

    parts: tuple[Part, ...] = ()
    n_rows: int = 0
    _steps: dict[str, tuple[_Step, ...]] = field(default_factory=dict[str, tuple[_Step, ...]])
    _splits: dict[Hashable, tuple[Shares, Any]] = field(default_factory=dict[Hashable, tuple[Shares, Any]])
    """By numbers of parts, their ranks, and the device: modules that the same parts change are split alike."""
    _readings: dict[tuple[str, ...], tuple[_Reading, ...]] = field(
        default_factory=dict[tuple[str, ...], tuple[_Reading, ...]]
    )

    def changes(self, path: str) -> bool:
        """Whether a part has a delta at a module."""
        return any(path in part.variant.factors for part in self.parts)

    def steps(
        self, path: str, products: Products, factors: Callable[[Part, str, Any], Any], near: Any
    ) -> tuple[_Step, ...]:
        """What is done at a module, one after another."""
        if path not in self._steps:
            here = [i for i, part in enumerate(self.parts) if path in part.variant.factors]
            few = [i for i in here if self.parts[i].few]
            groups = [few, *([i] for i in here if i not in few)] if len(few) > 1 else [[i] for i in here]
            self._steps[path] = tuple(self._step(path, tuple(group), products, factors, near) for group in groups)
        return self._steps[path]

    def _step(
        self,
        path: str,
        group: tuple[int, ...],
        products: Products,
        factors: Callable[[Part, str, Any], Any],
        near: Any,
    ) -> _Step:
        parts = [self.parts[i] for i in group]
        ranks = tuple(part.variant.factors[path].a.shape[1] for part in parts)
        key = (group, ranks, products.device(near))
        if key not in self._splits:
            shares = _shares(parts, self.n_rows)
            self._splits[key] = (shares, products.split(shares, ranks, near))
        shares, split = self._splits[key]
        return _Step(shares, products.step([factors(part, path, near) for part in parts], split), sum(ranks))

    def readings(self, paths: tuple[str, ...], products: Products) -> tuple[_Reading, ...]:
        """What modules that read one input read of it, of those whose steps are made."""
        if paths not in self._readings:
            every = [(path, i, step) for path in paths for i, step in enumerate(self._steps.get(path, ()))]
            groups: dict[Any, list[tuple[str, int, _Step]]] = {}
            for one in every:
                groups.setdefault(one[2].shares.alike, []).append(one)
            self._readings[paths] = tuple(_reading(group, products) for group in groups.values())
        return self._readings[paths]


NOTHING = Placed()
"""No row runs with a variant."""


def _reading(group: SequenceOf[tuple[str, int, _Step]], products: Products) -> _Reading:
    stops = np.cumsum([step.rank for _, _, step in group])
    whose = [
        (path, i, slice(int(stop) - step.rank, int(stop))) for (path, i, step), stop in zip(group, stops, strict=True)
    ]
    made = group[0][2].made if len(group) == 1 else products.beside([step.made for _, _, step in group])
    return _Reading(made, tuple(whose))


def _shares(parts: SequenceOf[Part], n_rows: int) -> Shares:
    scales = np.array([part.scale for part in parts])
    if len(parts) == 1:
        return Shares(parts[0].rows, None, scales)
    chosen: list[Rows] = [part.rows for part in parts if part.rows is not None]
    rows = np.unique(np.concatenate(chosen))
    own = np.zeros((len(rows), len(parts)), dtype=bool)
    for index, mine in enumerate(chosen):
        own[np.searchsorted(rows, mine), index] = True
    return Shares(None if len(rows) == n_rows else rows, own, scales)
