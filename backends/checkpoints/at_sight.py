"""What is wrong with a folder that is to be served, seen before anything is started for it: no library, no weight is read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .conversion.bin import bin_paths
from .conversion.kind import kind_of
from .default_model import is_default
from .folder import check_tokenizer, check_whole, inspect_folder, read_config
from .quantised import check_runnable, scheme_of

__all__ = ["refuse_at_sight"]


def refuse_at_sight(name: str, backend: str) -> None:
    """Raise what `resolve_model` or the load would come to, for a local folder whose small files and headers show it.

    What is not on this machine, or has no such name, is left to them.
    """
    folder = _local(name)
    if folder is not None:
        with suppress(OSError):  # of a file that cannot be read they have more to say
            _refuse(folder, backend)


def _refuse(folder: Path, backend: str) -> None:
    kind = kind_of(folder)
    if kind is None:
        inspect_folder(folder)
        check_runnable(scheme_of(folder), folder, backend)
    elif kind == "pickle":
        check_whole(folder)
        read_config(folder)
        bin_paths(folder)
        check_tokenizer(folder)


def _local(name: str) -> Path | None:
    if is_default(name):
        return None
    try:
        folder = Path(name).expanduser()
        return folder.resolve() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None
