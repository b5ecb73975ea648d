"""How well a model does a task: accuracy and mean logit difference, clean and corrupt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Gather, capture
from ...clients.requests.hooks import Hooks
from ...protos.spec import Hook
from .fitted import FittedTask, Form

__all__ = ["Score", "accuracy"]

INPUTS_A_REQUEST = 32


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One number an example: mean logit of the correct answers minus that of the wrong ones, at the last position."""

    names: tuple[str, ...]
    clean: NDArray[np.float64]
    """[example]."""
    corrupt: NDArray[np.float64]
    """[example]; with the answers of the clean prompt, so negative where the corruption turns the answer over."""

    @property
    def accuracy(self) -> float:
        """Share of clean prompts where the correct answers have the higher logit."""
        return float((self.clean > 0).mean())

    @property
    def corrupt_accuracy(self) -> float:
        """The same share of corrupt prompts, still by the answers of the clean ones."""
        return float((self.corrupt > 0).mean())

    @property
    def difference(self) -> float:
        """Mean over clean prompts."""
        return float(self.clean.mean())

    @property
    def corrupt_difference(self) -> float:
        """Mean over corrupt prompts."""
        return float(self.corrupt.mean())

    def __repr__(self) -> str:
        n = len(self.names)
        parts = (("clean", self.accuracy, self.difference), ("corrupt", self.corrupt_accuracy, self.corrupt_difference))
        said = ", ".join(f"{form} {share * n:.0f}/{n} right, {mean:+.2f}" for form, share, mean in parts)
        return f"Score({said})"


def accuracy(client: Client, task: FittedTask, *, hooks: Hooks = ()) -> Score:
    """Logit differences of every example in both forms; `hooks` apply to all of them.

    Two logits or so a prompt cross the wire. Raises what `run` raises.
    """
    forms: dict[Form, NDArray[np.float64]] = {}
    for form in ("clean", "corrupt"):
        found = [_differences(client, batch, form, hooks) for batch in task.batches(INPUTS_A_REQUEST)]
        forms[form] = np.concatenate(found)
    return Score(task.names, forms["clean"], forms["corrupt"])


def _differences(client: Client, task: FittedTask, form: Form, hooks: Hooks) -> NDArray[np.float64]:
    """[example] of a batch."""
    run = client.run(task.prompts(form), hooks=hooks, capture=_reads(task), model=task.model)
    found: list[float] = []
    for example in task.examples:
        logits: NDArray[Any] = run.inputs[example.name]["logits"][0].astype(np.float64)
        n = len(example.correct)
        found.append(float(logits[:n].mean() - logits[n:].mean()))
    return np.array(found)


def _reads(task: FittedTask) -> list[Hook]:
    """Each input's own answers, correct ones first."""
    return [
        capture("logits", reduce=Gather((*e.correct, *e.wrong)), positions=-1, inputs=e.name) for e in task.examples
    ]
