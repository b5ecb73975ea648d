"""Arrays with named axes for the libraries of others: xarray and pandas, each imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from ...protos.errors import FailedPrecondition
from ...protos.tensors import Array, dtype_name

__all__ = ["Labelled", "required"]


_LIBRARIES: dict[str, Callable[[], Any]] = {
    "gguf": lambda: import_module("gguf"),
    "pandas": lambda: import_module("pandas"),
    "xarray": lambda: import_module("xarray"),
}


def required(name: str, what: str) -> Any:
    """A library that is no dependency of ours. Raises FailedPrecondition, naming what to install."""
    try:
        return _LIBRARIES[name]()
    except ImportError as error:
        raise FailedPrecondition(f"{what} needs {name}: pip install {name}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """An array, the names of its axes, and the labels along some of them."""

    values: Array
    dims: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]]
    """Axis → a label for each index; an axis without is counted from 0."""
    beside: Mapping[str, tuple[str, Sequence[Any]]] = field(default_factory=dict[str, tuple[str, Sequence[Any]]])
    """Further labels: name → (axis, a label for each index), such as the tokens along `pos`."""
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_xarray(self, name: str | None = None) -> Any:
        """An xarray.DataArray of a copy; bfloat16, which xarray cannot compute with, as float32."""
        xarray = required("xarray", "to_xarray")
        coords: dict[str, Any] = {axis: list(labels) for axis, labels in self.labels.items() if axis in self.dims}
        coords |= {key: (axis, list(labels)) for key, (axis, labels) in self.beside.items() if axis in self.dims}
        return xarray.DataArray(_plain(self.values), coords, self.dims, name, dict(self.about))

    def to_pandas(self, name: str | None = None) -> Any:
        """A pandas.Series of one axis, else a DataFrame: its columns the last axis, its rows all others."""
        pandas = required("pandas", "to_pandas")
        *rows, last = self.dims
        index = self._index(pandas, rows or [last])
        values = _plain(self.values)
        if not rows:
            return pandas.Series(values, index, name=name)
        columns = pandas.Index(self._of(last), name=last)
        return pandas.DataFrame(values.reshape(-1, values.shape[-1]), index, columns)

    def _index(self, pandas: Any, axes: Sequence[str]) -> Any:
        """Labels of some axes, with those that stand beside them."""
        levels = [self._of(axis) for axis in axes]
        places = np.indices([len(level) for level in levels]).reshape(len(levels), -1)
        columns = {axis: [levels[i][place] for place in places[i]] for i, axis in enumerate(axes)}
        for key, (axis, labels) in self.beside.items():
            if axis in axes:
                columns[key] = [labels[place] for place in places[list(axes).index(axis)]]
        if len(columns) == 1:
            [(axis, found)] = columns.items()
            return pandas.Index(found, name=axis)
        return pandas.MultiIndex.from_arrays(list(columns.values()), names=list(columns))

    def _of(self, axis: str) -> Sequence[Any]:
        return self.labels.get(axis) or range(self.values.shape[self.dims.index(axis)])


def _plain(values: Array) -> Array:
    """A copy that may be written to."""
    return np.array(values, np.float32 if dtype_name(values.dtype) == "bfloat16" else values.dtype)
