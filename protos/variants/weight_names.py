"""Names of weights: `w_q.3`, `w_embed`, or `module:<path>`; ours are the same on every family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ..errors import InvalidArgument

__all__ = ["GLOBAL_WEIGHTS", "LAYER_WEIGHTS", "MAX_WEIGHT_NAME", "checked_weight", "matching", "split_weight"]

LAYER_WEIGHTS = ("w_q", "w_k", "w_v", "w_o", "w_gate", "w_up", "w_down")
"""In the order in which a layer uses them; each is followed by a dot and a layer."""
GLOBAL_WEIGHTS = ("w_embed", "w_unembed")
MAX_WEIGHT_NAME = 500
_LAYER = re.compile(rf"({'|'.join(LAYER_WEIGHTS)})\.(0|[1-9][0-9]{{0,5}})")
_PATH = re.compile(r"module:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def checked_weight(name: str) -> str:
    """The name itself. Raises InvalidArgument for what names no weight."""
    if not isinstance(name, str) or len(name) > MAX_WEIGHT_NAME:  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
        raise InvalidArgument(
            f"a weight's name is a text of at most {MAX_WEIGHT_NAME} characters, got {str(name)[:60]!r}"
        )
    if name in GLOBAL_WEIGHTS or _LAYER.fullmatch(name) or _PATH.fullmatch(name):
        return name
    raise InvalidArgument(
        f"{name!r} names no weight; give {', '.join(LAYER_WEIGHTS)} with a layer ({LAYER_WEIGHTS[0]}.3), "
        f"{' or '.join(GLOBAL_WEIGHTS)}, or module:<path>"
    )


def split_weight(name: str) -> tuple[str, int | None]:
    """`w_q.3` → ("w_q", 3); without a layer: the name and None."""
    found = _LAYER.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, None)


def matching(names: Sequence[str], pattern: str) -> tuple[str, ...]:
    """Those that a pattern stands for: `w_down.*`, `w_?.3`, or a name. Raises InvalidArgument when it is none of them."""
    found = tuple(name for name in names if fnmatchcase(name, pattern))
    if not found:
        shown = ", ".join(names[:12]) + (f", … {len(names) - 12} more" if len(names) > 12 else "")
        raise InvalidArgument(f"no delta is at {pattern!r}; there are {shown or 'none'}")
    return found
