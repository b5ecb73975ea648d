"""What a forward finds wrong with some sequence's rows on the device, told once the host has its numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument, ProbewireError
from ...protos.sites import Site
from ...protos.tensors import Array

if TYPE_CHECKING:
    from .row_span import RowSpan

__all__ = ["Alarms", "beyond", "no_key_left"]


@dataclass(frozen=True, slots=True, eq=False)
class _Alarm:
    slot: RowSpan
    positions: NDArray[np.int64]
    wrong: Any
    """[row], bool."""
    error: Callable[[int], ProbewireError]
    """Of the first position that is wrong."""


class Alarms:
    """Of one forward. One that goes off fails its own sequence."""

    def __init__(self) -> None:
        self.alarms: list[_Alarm] = []

    def add(
        self, slot: RowSpan, positions: NDArray[np.int64], wrong: Any, error: Callable[[int], ProbewireError]
    ) -> None:
        """Fail the slot, once the forward is read, where any of `wrong` ([row], bool, on the device) is true."""
        self.alarms.append(_Alarm(slot, positions, wrong, error))

    def part(self, slots: Collection[RowSpan]) -> Alarms:
        """Those of some sequences."""
        part = Alarms()
        part.alarms = [alarm for alarm in self.alarms if alarm.slot in slots]
        return part

    def device_tensors(self) -> list[Any]:
        """Everything that `finish` will take of the host's arrays, in its order."""
        return [alarm.wrong for alarm in self.alarms]

    def finish(self, host: Iterator[Array]) -> None:
        """Mark the slots whose alarms went off."""
        for alarm in self.alarms:
            wrong = next(host).astype(bool)
            if wrong.any() and alarm.slot.error is None:
                alarm.slot.error = alarm.error(int(alarm.positions[int(np.argmax(wrong))]))


def beyond(site: Site, dtype: str) -> Callable[[int], ProbewireError]:
    """A capture's cast turned a number into an infinite one."""
    return lambda position: InvalidArgument(
        f"{site}: the row at position {position} holds numbers beyond {dtype}; capture it as it is, or in float32"
    )


def no_key_left(site: Site) -> Callable[[int], ProbewireError]:
    """Every key that a query sees was taken out."""
    return lambda position: InvalidArgument(
        f"{site}: the row at position {position} has no key left: every one that it sees was set to −infinity, and "
        "attention over nothing has no meaning; leave the row out (positions, spans), or leave it a key"
    )
