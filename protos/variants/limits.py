"""What a server takes of one variant."""

from __future__ import annotations

from ..errors import InvalidArgument
from .variant import Variant

__all__ = ["MAX_RANK", "check_limits"]

MAX_RANK = 512
"""Of one weight."""


def check_limits(variant: Variant) -> None:
    """Raise InvalidArgument for a rank that is no longer low."""
    for name, delta in variant.deltas.items():
        if delta.rank > MAX_RANK:
            raise InvalidArgument(
                f"the delta at {name} has rank {delta.rank}; at most {MAX_RANK} are served: compress it "
                f"(variant.compressed(rank={MAX_RANK}) or energy=.99), or merge it and load it as a model"
            )
