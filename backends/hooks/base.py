"""What a backend is: a model that runs, is read and is edited. Every method is called by the one thread that owns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...protos.model import ModelInfo
from ...protos.tensors import Array
from ..deltas.weight_table import Linear, WeightTable
from ..model.anatomy.derive import Anatomy
from ..model.limits import Limits
from .bound import BoundPlan
from .points import Points
from .run_parts import RunParts
from .sequence import Sequence, StepResult

__all__ = ["Backend", "Engine"]


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
    derived: Anatomy | None
    """Where its sites are, as one forward showed; None where that was not understood."""

    weight_table: WeightTable
    """The weights that take deltas."""

    compared: bool
    """Whether the library's code for this architecture is transformers', or was read beside it; else load compares them."""

    def keep_whole(self) -> None:
        """Cut no runs from now on, and share nothing between a sweep's plans: it was seen to change what comes out."""
        ...

    def generate_alone(self, why: str) -> bool:
        """Let no sequences share a forward from now on: they go one after another, each with the library's own cache, and
        `info.batching` says why. False where there is no such engine, or it cannot even begin."""
        ...

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

    def shared_prefix(self, base: Sequence) -> Any:
        """Run the input of a sweep once, and keep what its variants can share."""
        ...

    def sweep(self, variants: SequenceOf[Sequence], prefix: Any | None) -> list[StepResult]:
        """Measure several variants of one input; with its prefix, only from where their edits begin."""
        ...

    def take_deltas(self) -> Mapping[str, Linear]:
        """Let linear modules add the deltas of the forward under way: those whose rows are the tokens', by path, the
        embedding and the output head under EMBED and UNEMBED. Called once."""
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
