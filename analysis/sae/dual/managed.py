"""Several managers of latents as one, each with its own weight over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....protos.errors import InvalidArgument
from ..training.training_run import AddedLoss, Manager

__all__ = ["Managed"]


class Managed:
    """Added losses together: each keeps its curve and its note, and grows from 0 to its weight over its own steps.

    `schedule`: name of a loss → (first, last): before step `first` it counts 0, from `last` on 1, in between it grows in
    a line; those that are not named count 1 from the start. Raises InvalidArgument for two of one name, and for a
    schedule of a loss that is not there.
    """

    name = "managed"

    def __init__(self, losses: Sequence[AddedLoss], schedule: Mapping[str, tuple[int, int]] | None = None) -> None:
        names = [loss.name for loss in losses]
        if not names or len(set(names)) != len(names):
            raise InvalidArgument(f"managed losses are at least one, of distinct names; got {names}")
        self.losses, self.schedule = tuple(losses), dict(schedule or {})
        for name, (first, last) in self.schedule.items():
            if name not in names or not 0 <= first <= last:
                raise InvalidArgument(
                    f"schedule {name!r}: ({first}, {last}); there are {', '.join(names)}, and 0 ≤ first ≤ last"
                )
        self._step = 0

    @property
    def note(self) -> Mapping[str, Any]:
        """Of all."""
        told = {name: list(steps) for name, steps in self.schedule.items()}
        return {"losses": {loss.name: dict(loss.note) for loss in self.losses}, "schedule": told}

    def weight(self, name: str, step: int) -> float:
        """What a loss counts at a step, from 0."""
        first, last = self.schedule.get(name, (0, 0))
        return 1.0 if step >= last else max(0.0, (step - first) / (last - first))

    def __call__(self, sae: Any, output: Any) -> Any:
        """The weighted sum; each part has a curve of its own."""
        total: Any = output.loss.new_zeros(())
        for loss in self.losses:
            term = self.weight(loss.name, self._step) * loss(sae, output)
            output.losses[loss.name] = term
            total = total + term
        self._step += 1
        return total

    def before(self, sae: Any) -> None:
        """As `Manager`."""
        for manager in self._managers():
            manager.before(sae)

    def finish(self, sae: Any) -> None:
        """As `Manager`."""
        for manager in self._managers():
            manager.finish(sae)

    def state(self) -> dict[str, Any]:
        """As `Manager`."""
        torch_step = {"step": _tensor(self._step)}
        parts = {loss.name: loss.state() for loss in self.losses if isinstance(loss, Manager)}
        return torch_step | {f"{name}.{key}": value for name, state in parts.items() for key, value in state.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """As `Manager`."""
        self._step = int(state["step"])
        for loss in self.losses:
            if isinstance(loss, Manager):
                start = f"{loss.name}."
                loss.load({key.removeprefix(start): v for key, v in state.items() if key.startswith(start)})

    def _managers(self) -> list[Manager]:
        return [loss for loss in self.losses if isinstance(loss, Manager)]


def _tensor(value: int) -> Any:
    from importlib import import_module

    return import_module("torch").tensor(value)
