"""Callers who leave at the worst moment: a coroutine whose task is cancelled as it waits for the n-th time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["cancelled_at"]


async def cancelled_at(n: int, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` and cancel it at its n-th wait; False when it had ended before."""
    counted = _Counted(work, n)

    async def run() -> None:
        counted.task = asyncio.current_task()
        await counted

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return counted.waits >= n  # cancelled, but the work came to its end all the same


class _Counted:
    """Passes on what a coroutine waits for, and counts."""

    def __init__(self, work: Coroutine[Any, Any, None], n: int) -> None:
        self.work, self.n, self.waits = work, n, 0
        self.task: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        waiting, thrown = self.work.__await__(), None
        while True:
            try:
                what = waiting.send(None) if thrown is None else waiting.throw(thrown)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self.n:
                assert self.task is not None
                asyncio.get_running_loop().call_soon(self.task.cancel)
            thrown = None
            try:
                yield what
            except BaseException as error:  # noqa: BLE001 - handed on to the one who waits
                thrown = error
