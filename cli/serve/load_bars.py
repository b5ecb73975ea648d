"""How a load looks in a terminal: a bar a model, and the log above it. Elsewhere: a line a stage."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ...protos.loading import LoadProgress

__all__ = ["LoadBars"]


_TITLES = {
    "starting": "starting a worker",
    "wait": "waiting for another process",
    "download": "downloading",
    "verify": "checking the files",
    "dequantise": "dequantising",
    "convert": "converting",
    "write": "writing",
    "done": "found the checkpoint",
    "load": "loading the weights",
    "check": "checking itself",
}
"""Stages that are not clear by themselves."""


class LoadBars:
    """Shows the progress of several loads. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._stages: dict[str, str] = {}

    def __enter__(self) -> LoadBars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, model: str, progress: LoadProgress) -> None:
        """Draw where a load is."""
        description = f"{model}: {_TITLES.get(progress.stage, progress.stage)}"
        if not self._console.is_terminal and self._stages.get(model) != progress.stage:
            self._console.print(description, highlight=False, soft_wrap=True)
        self._stages[model] = progress.stage
        if model not in self._tasks:
            self._tasks[model] = self._bars.add_task(model, total=None)
        self._bars.update(
            self._tasks[model], description=description, completed=progress.done, total=progress.total or None
        )
