"""How many threads a model on the CPU should use: as many as there are cores that nobody else keeps busy.

The tensor library's threads wait for each other after each operation, and spin while they do. One of them without a core
of its own therefore makes all wait for the system's next slice of time: a step was seen to take twenty times as long
beside one busy process on one of two cores, where half as many threads would have cost a half.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Cores", "most_threads", "usable_cores"]

LOOK_S = 0.5
"""How often to look."""
FIRST_LOOK_S = 0.25
"""How long before a model is loaded: its first forwards would suffer most."""
TOLERATED = 0.65
"""Of a core that others may keep busy without costing us a thread: the gateway and clients on the same machine do."""
CALM_LOOKS = 2
"""So many looks in a row must find more room before more threads are used."""
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """Cores that this process may run on, its container's share included; at least one."""
    cores = len(_own_cores())
    with suppress(OSError, ValueError):  # "max" is no number
        quota, period = CPU_MAX.read_text().split()
        cores = min(cores, max(1, int(int(quota) / int(period))))
    return cores


def most_threads() -> int:
    """As many as cores, or as OMP_NUM_THREADS says where that is fewer."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(usable_cores(), int(told)) if told.isdigit() and int(told) else usable_cores()


def _own_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Cores:
    """Watches the cores and says when another number of threads fits. Used by the model's thread."""

    def __init__(self, most: int, use: Callable[[int], None], *, fixed: bool = False) -> None:
        """`use` sets the number of threads, which is `most` at first; `fixed`: an operator chose it."""
        self.n = most
        self._most, self._use, self._fixed = most, use, fixed
        self._process = psutil.Process()
        self._before = self._seen()
        self._calm = 0

    @classmethod
    def at_load(cls, threads: int | None, use: Callable[[int], None]) -> Cores:
        """For a model that is about to be loaded, with `n` threads (0: as the library chooses). `threads`: see WorkerConfig."""
        made = cls(most_threads() if threads == 0 else threads or 0, use, fixed=threads != 0)
        if not made._fixed and made._most > 1:
            time.sleep(FIRST_LOOK_S)
            made.n = made._wanted(made._others())
        return made

    def look(self) -> None:
        """To be called often; does something once in a while."""
        if not self._fixed and self._most > 1 and time.monotonic() - self._before[0] >= LOOK_S:
            self._fit(self._others())

    def _others(self) -> float:
        """Cores that anybody else has kept busy since the last look."""
        before, now = self._before, self._seen()
        self._before = now
        return max(0.0, (now[1] - before[1]) - (now[2] - before[2])) / (now[0] - before[0])

    def _wanted(self, others: float) -> int:
        return min(max(math.floor(usable_cores() - others + TOLERATED), 1), self._most)

    def _fit(self, others: float) -> None:
        wanted = self._wanted(others)
        self._calm = self._calm + 1 if wanted > self.n else 0
        if wanted < self.n or self._calm >= CALM_LOOKS:
            self.n, self._calm = wanted, 0
            self._use(wanted)

    def _seen(self) -> tuple[float, float, float]:
        """Now; seconds that our cores have been busy, and those of them that were ours."""
        own, every = _own_cores(), psutil.cpu_times(percpu=True)
        busy = sum(_busy(times) for i, times in enumerate(every) if i in own)
        mine = self._process.cpu_times()
        return time.monotonic(), busy, mine.user + mine.system


def _busy(times: Any) -> float:
    """Seconds that a core has worked, for a virtual machine's host too."""
    waiting = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is part of the user's
    return sum(times) - sum(getattr(times, name, 0.0) for name in waiting)
