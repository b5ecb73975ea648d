"""States of a training on the disk: written whole or not at all, so that a run killed at any point can go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ....protos.errors import FailedPrecondition

__all__ = [
    "FOLDER",
    "Checkpoint",
    "Resumable",
    "discard",
    "latest_checkpoint",
    "move_in",
    "save_checkpoint",
    "write_json",
]

FOLDER = "checkpoints"
_STREAM = "stream.json"
_UNFINISHED = ".writing"


class Resumable(Protocol):
    """One SAE in training: what it needs to go on with the same bits."""

    def save_state(self, folder: Path) -> None:
        """Into a folder that is there and empty."""
        ...

    def load_state(self, folder: Path) -> None:
        """From such a folder."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All SAEs of one stream after the same step, and where the data stood."""

    folder: Path
    step: int
    """Steps done."""
    names: tuple[str, ...]
    data: dict[str, Any]
    """`Batches.state_dict()`, so that the next batch is that of the next step."""

    def restore(self, name: str, trained: Resumable) -> None:
        """Raises FailedPrecondition when it cannot be read."""
        try:
            trained.load_state(self.folder / name)
        except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
            raise FailedPrecondition(
                f"the checkpoint {self.folder / name} cannot be read ({error}); remove {self.folder} to start anew"
            ) from error


def save_checkpoint(
    root: Path, step: int, trained: Mapping[str, Resumable], data: Mapping[str, Any], *, keep_all: bool = False
) -> Checkpoint:
    """Save all under `root`/checkpoints/step-N; it has that name only once it is on the disk. Older ones then go."""
    base = root / FOLDER
    unfinished = base / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, one in trained.items():
        (unfinished / name).mkdir()
        one.save_state(unfinished / name)
    note = {"step": step, "names": list(trained), "data": dict(data)}
    (unfinished / _STREAM).write_text(json.dumps(note, allow_nan=False))
    for folder, _, files in os.walk(unfinished):
        for file in files:
            _to_disk(Path(folder) / file)
        _to_disk(Path(folder))
    final = base / f"step-{step:09d}"
    older = [] if keep_all else _complete(base)
    discard(final)
    unfinished.rename(final)
    _to_disk(base)
    for folder in older:
        if folder != final:
            discard(folder)
    return Checkpoint(final, step, tuple(trained), dict(data))


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The last complete one; None where there is none. Raises FailedPrecondition when it cannot be read."""
    complete = _complete(root / FOLDER)
    if not complete:
        return None
    folder = complete[-1]
    try:
        note = json.loads((folder / _STREAM).read_text())
        return Checkpoint(folder, int(note["step"]), tuple(note["names"]), dict(note["data"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"the checkpoint {folder} cannot be read ({error}); remove it to go on") from error


def discard(folder: Path) -> None:
    """Remove a folder; whenever this is ended, nothing half removed has the folder's name."""
    gone = folder.with_name(".removing")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by another in one step, on the disk before this returns."""
    beside = path.with_name(f".{path.name}{_UNFINISHED}")
    beside.write_text(json.dumps(value, indent=1, allow_nan=False))
    move_in(beside, path)


def move_in(source: Path, target: Path) -> None:
    """Give a finished file its name, on the disk before this returns."""
    _to_disk(source)
    source.replace(target)
    _to_disk(target.parent)


def _complete(base: Path) -> list[Path]:
    return sorted(base.glob("step-*"))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
