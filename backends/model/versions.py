"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions_of"]


def versions_of(*libraries: str) -> dict[str, str]:
    """Library name → version, with probewire's and Python's own."""
    found = {"python": platform.python_version()}
    for name in ("probewire", "numpy", *libraries):
        if (known := _version(name)) is not None:
            found[name] = known
    return found


@cache
def _version(name: str) -> str | None:
    """Read once: a library's metadata is a long file, and what is imported does not change. None: a checkout, not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
