"""`probewire pull`: fetch a model into the cache, with a progress bar."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress as Bars,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..backends.checkpoints import Progress, Stage, licence_of, resolve_model
from ..protos.errors import ProbewireError

__all__ = ["add_arguments", "cache_dir_from", "progress_bars", "run"]

_TITLES: dict[Stage, str] = {
    "wait": "Waiting for another process",
    "download": "Downloading",
    "verify": "Checking",
    "dequantise": "Dequantising",
    "convert": "Converting",
    "write": "Writing",
    "done": "Ready",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire pull` takes."""
    parser.add_argument(
        "model",
        nargs="?",
        default=None,
        help="a Hugging Face id, a local folder or .gguf file, or gemma-3-270m, which comes under Gemma's terms "
        "(default: SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a Hugging Face model")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=None,
        help="where the default model and gemma-3-270m are kept (default: $PROBEWIRE_CACHE, else the user's cache folder); "
        "Hugging Face models go to Hugging Face's own cache",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch, then say where the model lies. The exit status: 0, 1 for an error, 130 when interrupted."""
    if licence := licence_of(args.model):
        print(licence, file=sys.stderr)
    try:
        with progress_bars() as report:
            checkpoint = resolve_model(
                args.model,
                revision=args.revision,
                cache_dir=cache_dir_from(args.cache_dir),
                progress=report,
                licensed=True,
            )
    except ProbewireError as error:
        print(f"probewire pull: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("probewire pull: stopped; run it again to go on from here", file=sys.stderr)
        return 130
    print(f"{checkpoint.model_id} is ready in {checkpoint.folder}")
    if checkpoint.revision is not None:
        print(f"revision   {checkpoint.revision}")
    print(f"model hash {checkpoint.model_hash}")
    return 0


def cache_dir_from(option: Path | None) -> Path | None:
    """The cache folder asked for by option or environment; None for the usual one."""
    variable = os.environ.get("PROBEWIRE_CACHE")
    return option or (Path(variable) if variable else None)


class _Report:
    """Shows each stage that takes place."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[Stage, TaskID] = {}

    @property
    def stages(self) -> set[Stage]:
        """Those that took place."""
        return set(self._tasks)

    def __call__(self, progress: Progress) -> None:
        if progress.stage == "done":
            return
        if progress.stage not in self._tasks:
            self._tasks[progress.stage] = self._bars.add_task(_TITLES[progress.stage], total=None)
            if self._bars.disable:
                print(f"{_TITLES[progress.stage]} …", file=sys.stderr)
        self._bars.update(self._tasks[progress.stage], completed=progress.done, total=progress.total)


@contextmanager
def progress_bars() -> Generator[_Report]:
    """Bars on standard error; where that is no terminal, a line for each stage."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<25}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        yield _Report(bars)
