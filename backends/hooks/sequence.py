"""One input on its way through the model, and what comes of it: rows on the host, and a result a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ...protos.errors import ProbewireError
from ...protos.generation.sampling import Sampling
from ...protos.tensors import Array
from ..sampling.adjusted import Adjusted
from ..sampling.choice import Logits, choose_token
from .bound import BoundBackward, BoundHook, BoundPlan
from .metrics import BoundMetric

__all__ = ["Rows", "Sequence", "StepResult"]


@dataclass(eq=False, slots=True)
class Sequence:
    """One input on its way through the model: its tokens, its plan, and how to sample."""

    id: str
    tokens: list[int]
    """Prompt tokens; a generation appends what it samples."""
    prompt_length: int
    plan: BoundPlan
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    adjusted: Adjusted | None = None
    """What sampling changes in its logits; None: nothing."""
    begun: bool = False
    """In the engine, or past it."""
    metrics: tuple[BoundMetric, ...] = ()
    """Gradients and sweeps: what is measured."""
    backward: BoundBackward | None = None
    """Gradients: how they are taken, of the one metric."""
    retired: list[BoundPlan] = field(default_factory=list[BoundPlan])
    """Plans that live updates have replaced; their reductions are handed out with the first result of a later one."""

    @property
    def n_generated(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def chooses_on_host(self) -> bool:
        """Whether its next token is more than the largest logit's."""
        return self.sampling.temperature > 0 or self.adjusted is not None

    def choose(self, logits: Logits, index: int) -> int:
        """New token `index`, once, from its [vocab] logits on the host. Raises ProbewireError where none can be chosen."""
        if self.adjusted is None:
            return choose_token(logits, self.sampling, self.seed, index)
        token = choose_token(self.adjusted.of(logits, index), self.sampling, self.seed, index)
        self.adjusted.took(token)
        return token

    def reading(self) -> Iterator[BoundHook]:
        """Everything of it that may read rows of another input."""
        yield from self.plan.hooks
        readings = (reading for metric in self.metrics for reading in metric.readings)
        yield from (reading.baseline for reading in readings if reading.baseline is not None)
        if self.backward is not None and self.backward.path is not None:
            yield self.backward.path.other


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one hook's capture from one forward, on the host."""

    hook: int
    """Index in the plan."""
    sites: tuple[str, ...]
    """The leading axis."""
    positions: tuple[int, ...]
    values: Array
    """[site, …the site's axes]."""
    part: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one engine step did for one sequence."""

    sequence: Sequence
    rows: tuple[Rows, ...] = ()
    token: int | None = None
    """The sampled token; None while the prompt is still being read."""
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability) of the likeliest tokens, where asked for."""
    revision: int = 0
    """Of the plan that the forward ran under."""
    measured: tuple[float, ...] = ()
    """Gradients: the metric (at each point of a path). Sweeps: each metric."""
    error: ProbewireError | None = None
    """The sequence failed and is out of the batch; its neighbours are not touched."""
