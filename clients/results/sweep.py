"""What a sweep measured: an array a prompt and metric, with the sweep's own axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.gradients import targets_of
from ...protos.metrics import Metric
from ...protos.model import Started
from ..requests.asked import Asked
from .archive import Saved, read, write
from .named_array import NamedArray

__all__ = ["Sweep", "metric_labels", "sweep_axes"]


class Sweep:
    """Metrics by input, [plan, target] each."""

    def __init__(
        self,
        started: Started,
        measured: Mapping[str, NDArray[np.float64]],
        axes: Mapping[str, Sequence[Any]],
        asked: Asked,
    ) -> None:
        self.started = started
        """Model, backend, dtype, library versions."""
        self.measured = dict(measured)
        """Input → [plan, target], float64."""
        self.axes = {name: tuple(labels) for name, labels in axes.items()}
        self.asked = asked
        """The inputs, plans and metrics that were asked for; `client.repeat(sweep)` asks them again."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that were measured."""
        return tuple(self.measured)

    @property
    def tokens(self) -> dict[str, tuple[str, ...]]:
        """Each input's tokens as text, sources too."""
        return {item.name: item.tokens for item in self.started.inputs}

    def metrics(self, input: str) -> tuple[str, ...]:  # noqa: A002 - the word of the contract
        """What an input was measured by, in order: the labels of the axis `metric`."""
        item = next(item for item in self.asked.inputs if item.name == input)
        return metric_labels([target.metric for target in targets_of(item, self.asked.targets)])

    def array(self, input: str | None = None, target: int | str | Metric | None = None) -> NamedArray:  # noqa: A002 - the word of the contract
        """What was measured, over the sweep's axes: of one input, or with a first axis `input` over all of them.

        Where inputs were measured by several metrics there is an axis `metric` before the sweep's own; `target` chooses
        one of them, by its place, its label (`metrics(input)`) or itself. Raises InvalidArgument where inputs were
        measured by different metrics and none is chosen.
        """
        if input is not None and input not in self.measured:
            raise InvalidArgument(f"no input {input!r} was measured; there are {', '.join(self.measured)}")
        names = self.inputs if input is None else (input,)
        shape = tuple(len(labels) for labels in self.axes.values())
        labels = {name: self.metrics(name) for name in names}
        axes: dict[str, Sequence[Any]] = {}
        if target is not None:
            found = [self.measured[name][:, _place(target, labels[name])].reshape(shape) for name in names]
        elif all(len(own) == 1 for own in labels.values()):
            found = [self.measured[name][:, 0].reshape(shape) for name in names]
        else:
            axes["metric"] = _common(labels)
            found = [self.measured[name].T.reshape(-1, *shape) for name in names]
        if len(names) == 1:
            return self._named(found[0], axes)
        return self._named(np.stack(found), {"input": names, **axes})

    def _named(self, values: NDArray[np.float64], leading: Mapping[str, Sequence[Any]]) -> NamedArray:
        taken = [name for name in leading if name in self.axes]
        if taken:
            raise InvalidArgument(
                f"the sweep has an axis {taken[0]!r} of its own; give that another name, or name one input and target"
            )
        return NamedArray(values, {**leading, **self.axes})

    def to_xarray(self) -> Any:
        """As `array().to_xarray()`."""
        return self.array().to_xarray()

    def to_pandas(self) -> Any:
        """As `array().to_pandas()`."""
        return self.array().to_pandas()

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, what was asked too; `load` reads it back."""
        return write(Saved("Sweep", self.started, self.asked, measured=self.measured, axes=self.axes), path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. Raises InvalidArgument when the file holds another kind of result."""
        saved = read(path)
        if saved.kind != "Sweep" or saved.asked is None:
            raise InvalidArgument(f"{path} holds a {saved.kind}, not a {cls.__name__}")
        return cls(saved.started, saved.measured, saved.axes, saved.asked)

    def __repr__(self) -> str:
        axes = ", ".join(f"{name} ({len(labels)})" for name, labels in self.axes.items())
        return f"Sweep({len(self.measured)} inputs; {axes}; {self.started.model} on {self.started.backend})"


def sweep_axes(axes: Mapping[str, Sequence[Any]] | None, n_plans: int) -> dict[str, tuple[Any, ...]]:
    """The axes that plans lie along, in C order; without any, one axis `plan`. Raises InvalidArgument on a misfit."""
    found = {"plan": tuple(range(n_plans))} if axes is None else {name: tuple(v) for name, v in axes.items()}
    size = int(np.prod([len(labels) for labels in found.values()]))
    if size != n_plans:
        sizes = " × ".join(f"{name} {len(labels)}" for name, labels in found.items())
        raise InvalidArgument(f"axes {sizes} are {size} plans, but {n_plans} were given")
    return found


def metric_labels(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """A name for each, as it is written: "LogProb(5)"; of two that read alike, the later with its number."""
    seen: dict[str, int] = {}
    labels: list[str] = []
    for metric in metrics:
        label = _label(metric)
        seen[label] = seen.get(label, 0) + 1
        labels.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return tuple(labels)


def _label(metric: Any) -> str:
    """The class's name and what is not as by default, in order."""
    parts: list[str] = []
    for index, field in enumerate(fields(metric)):
        value = getattr(metric, field.name)
        if field.default is MISSING or value != field.default:
            parts.append(repr(value) if index == len(parts) else f"{field.name}={value!r}")
    return f"{type(metric).__name__}({', '.join(parts)})"


def _place(target: int | str | Metric, labels: tuple[str, ...]) -> int:
    """The column of one of the metrics that an input was measured by."""
    if isinstance(target, Integral):
        place = int(target)
    else:
        wanted = target if isinstance(target, str) else _label(target)
        place = labels.index(wanted) if wanted in labels else -1
    if 0 <= place < len(labels):
        return place
    raise InvalidArgument(f"no target {target}; inputs were measured by {len(labels)}: {', '.join(labels)}")


def _common(labels: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The metrics of all inputs alike. Raises InvalidArgument where they differ."""
    first, *others = labels.items()
    for name, own in others:
        if own != first[1]:
            raise InvalidArgument(
                f"inputs were measured by different metrics ({first[0]!r} by {', '.join(first[1])}; {name!r} by "
                f"{', '.join(own)}), so they are no one array; name an input, or a target that all have"
            )
    return first[1]
