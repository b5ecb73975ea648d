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

from ..backends.base import Backend

__all__ = ["Cores", "usable_cores"]

LOOK_S = 1.0
"""How often to look."""
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
    def of(cls, backend: Backend, threads: int | None) -> Cores:
        """Of a model: `threads` as WorkerConfig has it."""
        if threads:
            backend.use_threads(threads)
        return cls(min(backend.threads, usable_cores()), backend.use_threads, fixed=threads != 0)

    def look(self) -> None:
        """To be called often; does something once in a while."""
        if self._fixed or self._most < 2 or time.monotonic() - self._before[0] < LOOK_S:
            return
        before, now = self._before, self._seen()
        self._before = now
        seconds = now[0] - before[0]
        others = max(0.0, (now[1] - before[1]) - (now[2] - before[2])) / seconds
        self._fit(others)

    def _fit(self, others: float) -> None:
        """`others`: cores that are kept busy by anybody else."""
        wanted = min(max(math.floor(usable_cores() - others + TOLERATED), 1), self._most)
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
