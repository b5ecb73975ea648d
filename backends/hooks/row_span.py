"""Where one sequence's rows lie in a forward, and what its hooks have found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import ProbewireError
from .bound import BoundPlan
from .sequence import Sequence

__all__ = ["RowSpan"]


@dataclass(eq=False, slots=True)
class RowSpan:
    """Where one sequence's rows lie in this forward's tensors."""

    sequence: Sequence
    batch: int
    """Index on the batch axis."""
    start: int
    """First row on the position axis."""
    stop: int
    position: int
    """Absolute position of the first row."""
    tokens: NDArray[np.int64] | None = None
    """Input tokens of the rows; None when not known on the host (and no hook needs them)."""
    keys: tuple[int, int] | None = None
    """Range on the key axis, where the batch's keys are packed."""
    masked: Any = None
    """At attn_*: which keys each row cannot see, [row, 1 or head, key]."""
    error: ProbewireError | None = None
    """Set when a hook of this sequence failed; its later hooks are skipped."""
    conditions: dict[tuple[int, int, int], Any] = field(default_factory=dict[tuple[int, int, int], Any])
    """(hook, site index, condition's index) → boolean row mask, read at an earlier site."""
    encoded: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    """(hook, site index) → the rows whose latents' gradients are asked for."""
    choices: dict[tuple[int, str], Any] = field(default_factory=dict[tuple[int, str], Any])
    plan: BoundPlan = field(init=False)
    """The sequence's when this forward began: a live session may give the sequence another for the next one."""

    def __post_init__(self) -> None:
        self.plan = self.sequence.plan

    @property
    def wants_logprobs(self) -> bool:
        """Whether the log-probability of the token sampled from it is asked for."""
        return self.sequence.sampling.logprobs is not None or bool(self.plan.next_logprobs)

    @property
    def n_top(self) -> int:
        """How many of the likeliest tokens are asked for beside the sampled one."""
        return max([self.sequence.sampling.logprobs or 0, *(reduce.top for reduce in self.plan.next_logprobs)])

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def positions(self) -> NDArray[np.int64]:
        """Absolute positions of the rows."""
        return np.arange(self.position, self.position + self.n)
