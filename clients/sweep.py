"""What a sweep measured: an array a prompt and metric, with the sweep's own axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..protos.errors import Internal, InvalidArgument
from ..protos.metrics import Measured
from ..protos.model import Event, Finished, Started
from .named_array import NamedArray

__all__ = ["Sweep", "collect_sweep", "sweep_axes"]


class Sweep:
    """Metrics by input, [plan, target] each."""

    def __init__(
        self, started: Started, measured: Mapping[str, NDArray[np.float64]], axes: Mapping[str, Sequence[Any]]
    ) -> None:
        self.started = started
        """Model, backend, dtype, library versions."""
        self.measured = dict(measured)
        """Input → [plan, target], float64."""
        self.axes = {name: tuple(labels) for name, labels in axes.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs that were measured."""
        return tuple(self.measured)

    @property
    def tokens(self) -> dict[str, tuple[str, ...]]:
        """Each input's tokens as text, sources too."""
        return {item.name: item.tokens for item in self.started.inputs}

    def array(self, input: str | None = None, target: int = 0) -> NamedArray:  # noqa: A002 - the word of the contract
        """One metric over the sweep's axes: of one input, or with a first axis `input` over all of them."""
        if input is not None and input not in self.measured:
            raise InvalidArgument(f"no input {input!r} was measured; there are {', '.join(self.measured)}")
        for values in self.measured.values() if input is None else (self.measured[input],):
            if not 0 <= target < values.shape[1]:
                raise InvalidArgument(f"no target {target}; inputs were measured by {values.shape[1]}")
        shape = tuple(len(labels) for labels in self.axes.values())
        if input is not None:
            return NamedArray(self.measured[input][:, target].reshape(shape), self.axes)
        if len(self.measured) == 1:
            return self.array(self.inputs[0], target)
        stacked = np.stack([values[:, target].reshape(shape) for values in self.measured.values()])
        return NamedArray(stacked, {"input": self.inputs, **self.axes})

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


def collect_sweep(
    events: Iterable[Event], expected: Sequence[str], n_plans: int, on_plans: Callable[[int], None]
) -> tuple[Started, dict[str, NDArray[np.float64]]]:
    """All events of a sweep. `on_plans` is told how many measurements are in. Raises Internal for an answer with gaps."""
    started: Started | None = None
    parts: dict[str, dict[int, NDArray[np.float64]]] = {name: {} for name in expected}  # input → plan → [target]
    finished: set[str] = set()
    done = 0
    for event in events:
        if isinstance(event, Started):
            started = event
        elif isinstance(event, Measured):
            parts[event.input].update(zip(event.plans, event.values.numpy(), strict=True))
            done += len(event.plans)
            on_plans(done)
        elif isinstance(event, Finished):
            finished.add(event.input)
    if started is None:
        raise Internal("the answer ended before it began")
    whole: dict[str, NDArray[np.float64]] = {}
    for name, found in parts.items():
        if name not in finished or sorted(found) != list(range(n_plans)):
            raise Internal(f"the answer for input {name!r} has gaps, or ended early")
        whole[name] = np.stack([found[plan] for plan in range(n_plans)])
    return started, whole
