"""What a backend is: a model that runs, is read and is edited. Every method is called by the one thread that owns it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import ProbewireError
from ...protos.model import ModelInfo, Sampling
from ...protos.tensors import Array
from ..model.limits import Limits

if TYPE_CHECKING:
    from .backward import BoundBackward
    from .bound import BoundHook, BoundPlan
    from .metrics import BoundMetric
    from .points import Points
    from .run_parts import RunParts

__all__ = ["Backend", "Engine", "Rows", "Sequence", "StepResult"]


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
    begun: bool = False
    """In the engine, or past it."""
    metrics: tuple[BoundMetric, ...] = ()
    """Gradients and sweeps: what is measured."""
    backward: BoundBackward | None = None
    """Gradients: how they are taken, of the one metric."""
    retired: list[BoundPlan] = field(default_factory=list["BoundPlan"])
    """Plans that live updates have replaced; their reductions are handed out with the first result of a later one."""

    @property
    def n_generated(self) -> int:
        """New tokens so far."""
        return len(self.tokens) - self.prompt_length

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


class Engine(Protocol):
    """Continuous batching over one model."""

    def reason_not_to_fit(self, n_tokens: int) -> str | None:
        """Why a sequence of this many positions can never be admitted, or None."""
        ...

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        """Put a sequence in the batch, its cache reserved to the last token; False when there is no room now.

        `keep_tokens` positions of cache must stay free beside it.
        """
        ...

    def step(self) -> list[StepResult]:
        """One forward over the batch, and what came of it."""
        ...

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out (finished or cancelled) and free its cache. Unknown sequences are ignored."""
        ...

    def pause(self, sequence: Sequence) -> None:
        """Keep its cache but leave it out of the coming steps: its reader is slow."""
        ...

    def resume(self, sequence: Sequence) -> None:
        """Undo `pause`."""
        ...

    @property
    def active(self) -> SequenceOf[Sequence]:
        """Sequences in the batch, paused ones too."""
        ...

    @property
    def cache_held(self) -> int:
        """What the library's own cache holds, in bytes; not 0 when nothing runs: a leak."""
        ...

    def close(self) -> None:
        """Drop every sequence; nothing is called afterwards."""
        ...


class Backend(Protocol):
    """One loaded model."""

    info: ModelInfo
    points: Points
    """Where its sites are."""
    limits: Limits
    engine: Engine | None
    """None when generation is refused (`info.generate_note` says why)."""

    @property
    def hook_s(self) -> float:
        """Seconds spent in hooks so far (on a GPU: in launching them)."""
        ...

    @staticmethod
    def use_threads(n: int) -> None:
        """Compute with so many on the CPU, from the next forward on, in the calling thread."""
        ...

    def bind(self, plan: BoundPlan) -> None:
        """Move a plan's tensors to the device, once, before its sequence is used."""
        ...

    def run(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """One forward over several sequences at once, right-padded; a result each, in order."""
        ...

    @property
    def cuts_runs(self) -> bool:
        """Whether `run_part` is offered."""
        ...

    def run_part(self, sequence: Sequence, parts: RunParts, stop: int) -> StepResult:
        """Run a sequence from where `parts` ends to a position; the whole run's outcome comes with the last part."""
        ...

    def final_rows(self, ids: NDArray[np.int64]) -> Array:
        """What the body of the model gives for [batch, row] token ids that nobody hooks: [batch, row, d_model]."""
        ...

    def gradients(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """One forward and one backward over several sequences at once, whose `backward` is of one kind."""
        ...

    def trunk(self, base: Sequence) -> Any:
        """Run the input of a sweep once, and keep what its variants can share."""
        ...

    def sweep(self, variants: SequenceOf[Sequence], trunk: Any | None) -> list[StepResult]:
        """Measure several variants of one input; with its trunk, only from where their edits begin."""
        ...

    def weight_names(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight's name and shape, as the checkpoint has them."""
        ...

    def weight(self, name: str) -> Array:
        """One weight as the checkpoint has it. Raises NotFound."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...
