"""Versions of the libraries that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions_of"]


def versions_of(*libraries: str) -> dict[str, str]:
    """Library name → version, with probewire's and Python's own."""
    found = {"python": platform.python_version()}
    for name in ("probewire", "numpy", *libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a checkout that is not installed
    return found
