"""Several callers at once in this one process, as a notebook has them: threads over one client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

__all__ = ["together"]

T = TypeVar("T")
R = TypeVar("R")


def together(call: Callable[[T], R], items: Sequence[T]) -> tuple[float, list[R]]:
    """One thread an item, all let go at once. Seconds until the last has ended, and what each gave."""
    gate = Barrier(len(items) + 1)

    def one(item: T) -> R:
        gate.wait()
        return call(item)

    with ThreadPoolExecutor(len(items)) as pool:
        futures = [pool.submit(one, item) for item in items]
        gate.wait()
        start = time.perf_counter()
        results = [future.result() for future in futures]
        return time.perf_counter() - start, results
