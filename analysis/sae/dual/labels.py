"""Which rows of a batch are of the corpus to forget."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ....protos.errors import InvalidArgument

__all__ = ["checked_labels"]


def checked_labels(labels: Any) -> Any:
    """[row] bool as a tensor, with rows of both corpora. Raises InvalidArgument."""
    torch: Any = import_module("torch")
    found = torch.as_tensor(labels).bool()
    if found.ndim != 1 or not bool(found.any()) or bool(found.all()):
        raise InvalidArgument("labels are [row] of a batch, True for the corpus to forget, with rows of both")
    return found
