"""A numpy array whose axes have names, and labels along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from .labelled import Labelled

__all__ = ["NamedArray"]


class NamedArray:
    """float64 values with named axes: `grid.sel(layer=3)`, `grid.mean("position")`, `np.asarray(grid)`."""

    def __init__(self, values: Any, axes: Mapping[str, Sequence[Any]]) -> None:
        """`axes`: name → a label for each index, in the order of the array's axes. Raises InvalidArgument on a misfit."""
        self.values: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
        self.axes: dict[str, tuple[Any, ...]] = {name: tuple(labels) for name, labels in axes.items()}
        sizes = tuple(len(labels) for labels in self.axes.values())
        if self.values.shape != sizes:
            raise InvalidArgument(f"values of shape {list(self.values.shape)} do not fit axes {self._described()}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return self.values.shape

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self.axes)

    def axis(self, name: str) -> int:
        """Number of a named axis. Raises InvalidArgument when there is none."""
        if name not in self.axes:
            raise InvalidArgument(f"no axis {name!r}; there are {self._described()}")
        return self.dims.index(name)

    def sel(self, **labels: Any) -> NamedArray:
        """What lies at a label of an axis (the axis goes), or at a list of labels (it stays)."""
        values, axes = self.values, dict(self.axes)
        for name, wanted in labels.items():
            axis, known = list(axes).index(name) if name in axes else self.axis(name), axes[name]
            wanted = wanted.tolist() if isinstance(wanted, np.ndarray) else wanted
            many = isinstance(wanted, range) or (isinstance(wanted, (list, tuple)) and wanted not in known)
            chosen = tuple(cast("Sequence[Any]", wanted) if many else (cast("Any", wanted),))
            unknown = [label for label in chosen if label not in known]
            if unknown:
                raise InvalidArgument(f"axis {name!r} has no {unknown}; it has {_few(known)}")
            if many:
                values, axes[name] = values.take([known.index(label) for label in chosen], axis), chosen
            else:
                values = values.take(known.index(wanted), axis)
                del axes[name]
        return NamedArray(values, axes)

    def mean(self, *names: str) -> NamedArray:
        """The mean over some axes; over all of them when none is named."""
        return self._reduced(np.mean, names)

    def sum(self, *names: str) -> NamedArray:
        """The sum over some axes; over all of them when none is named."""
        return self._reduced(np.sum, names)

    def max(self, *names: str) -> NamedArray:
        """The maximum over some axes; over all of them when none is named."""
        return self._reduced(np.max, names)

    def _reduced(self, reduce: Any, names: Sequence[str]) -> NamedArray:
        gone = tuple(dict.fromkeys(names)) or self.dims
        kept = {name: labels for name, labels in self.axes.items() if name not in gone}
        return NamedArray(reduce(self.values, axis=tuple(self.axis(name) for name in gone)), kept)

    def transpose(self, *names: str) -> NamedArray:
        """The axes in another order: every name once. Raises InvalidArgument otherwise."""
        if sorted(names) != sorted(self.dims):
            raise InvalidArgument(f"transpose needs each axis once, got {names}; there are {self._described()}")
        return NamedArray(self.values.transpose([self.axis(n) for n in names]), {n: self.axes[n] for n in names})

    def item(self) -> float:
        """The one value of an array without axes, or with one entry. Raises InvalidArgument when there are more."""
        if self.values.size != 1:
            raise InvalidArgument(f"there are {self.values.size} values, not one; choose with sel: {self._described()}")
        return float(self.values.item())

    def to_xarray(self) -> Any:
        """As an xarray.DataArray. Raises FailedPrecondition where xarray is not installed."""
        return Labelled(self.values, self.dims, self.axes).to_xarray()

    def to_pandas(self) -> Any:
        """As a pandas.Series of one axis, else a DataFrame: its columns the last axis, its rows the others.

        Raises FailedPrecondition where pandas is not installed, InvalidArgument for an array without axes.
        """
        if not self.axes:
            raise InvalidArgument("there are no axes to put in a table; read item()")
        return Labelled(self.values, self.dims, self.axes).to_pandas()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __float__(self) -> float:
        return self.item()

    def __len__(self) -> int:
        return len(self.values)

    def _described(self) -> str:
        return ", ".join(f"{name} ({len(labels)})" for name, labels in self.axes.items()) or "none"

    def __repr__(self) -> str:
        return f"NamedArray({self._described()})\n{np.array2string(self.values, precision=3, threshold=60)}"


def _few(labels: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, labels[:12]))
    return shown + (", …" if len(labels) > 12 else "")
