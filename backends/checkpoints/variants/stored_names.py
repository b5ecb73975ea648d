"""Names of tensors in a checkpoint: the body's own name is not in every one."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["find_stored"]


def find_stored(stored: Collection[str], name: str) -> str:
    """The stored name of a tensor: the same, or but for a wrapper's name in front on either side; empty for none."""
    if name in stored:
        return name
    rest = name.partition(".")[2]
    ends = [rest] if rest in stored else [known for known in stored if known.endswith(f".{name}")]
    return ends[0] if len(ends) == 1 else ""
