"""A progress bar on standard error for anything long; silent unless a person is watching."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal, Protocol

__all__ = ["Bar", "progress_bar"]


class Bar(Protocol):
    """What moves a bar."""

    def __call__(self, done: int, total: int = 0, label: str | None = None) -> None:
        """`done` of `total` (0: not known)."""
        ...


@contextmanager
def progress_bar(
    label: str, unit: Literal["bytes", "tokens", "plans", "prompts", "steps"], *, show: bool = True
) -> Generator[Bar]:
    """A bar that is drawn only in a terminal or a notebook, and is gone when the work is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    visible = show and (console.is_terminal or console.is_jupyter)
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not visible) as progress:
        task = progress.add_task(label, total=None)

        def move(done: int, total: int = 0, label: str | None = None) -> None:
            progress.update(task, completed=done, total=total or None, description=label)

        yield move
