"""Scores of every unit of a space, by attribution: what circuits are chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...clients.requests.prompts import Prompts
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ..attribution.attribution_patching import attribution_patching
from ..attribution.relp import PATCHING_RULES
from .joined import AnySpace, JoinedSpace
from .space import Space

__all__ = ["RANKS", "Rank", "rank_units"]

Rank = Literal["atp", "relp"]
RANKS: tuple[Rank, ...] = ("atp", "relp")


def rank_units(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    space: AnySpace,
    *,
    rank: Rank = "atp",
    model: str = "",
) -> NDArray[np.float64]:
    """Scores of a space's shape: how much each unit helps the clean answer, by attribution patching ("noise").

    "relp" with RelP's rules in the backward pass. One request for each part of the space. Raises InvalidArgument for
    prompts that do not pair.
    """
    if rank not in RANKS:
        raise InvalidArgument(f"rank={rank!r}; allowed: {', '.join(RANKS)}")

    def of(part: Space) -> NDArray[np.float64]:
        options: dict[str, Any] = {"units": part.part == "unit", "heads": "all" if part.part == "head" else None}
        found = attribution_patching(
            client,
            clean,
            corrupt,
            list(part.sites),
            metric,
            positions=None if part.n_tokens is not None else "all",
            direction="noise",
            rules=PATCHING_RULES if rank == "relp" else (),
            model=model,
            **options,
        )
        return part.scores(np.asarray(found.importance.values).reshape(part.shape))

    return space.joined_scores([of(part) for part in space.parts]) if isinstance(space, JoinedSpace) else of(space)
