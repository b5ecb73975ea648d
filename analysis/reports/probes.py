"""Our own tasks as probes: which answers a change turns over, example by example, base and changed in one request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Gather, Hook, Input, capture
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument
from ..tasks import FittedTask, Task, agreement, capitals, fit, greater_than, ioi
from .subject import Subject, same_model

__all__ = ["SHIPPED", "clusters_of", "differences", "shipped_probes"]

SHIPPED: Mapping[str, Callable[[], Task]] = {
    "capitals": capitals,
    "agreement": agreement,
    "ioi": ioi,
    "greater_than": greater_than,
}
PAIRS_A_REQUEST = 16

Floats = NDArray[np.float64]


def shipped_probes(client: Client, *, n: int = 64, model: str = "") -> dict[str, FittedTask]:
    """Up to `n` examples of each shipped task that this tokenizer can write; a task of which it writes none is left out."""
    found: dict[str, FittedTask] = {}
    for name, make in SHIPPED.items():
        with suppress(InvalidArgument):  # no example fits
            found[name] = _some(make(), client, n, model)
    return found


def _some(task: Task, client: Client, n: int, model: str) -> FittedTask:
    try:
        return fit(task, client, n if n < len(task) else None, model=model)
    except InvalidArgument:  # fewer fit
        return fit(task, client, model=model)


def differences(subjects: Sequence[Subject], task: FittedTask, *, label: str = "", progress: bool = False) -> Floats:
    """[subject, example]: mean logit of the correct answers less that of the wrong ones, at the last position."""
    first = same_model(subjects)
    found = np.empty((len(subjects), len(task)))
    step, at = max(1, 2 * PAIRS_A_REQUEST // len(subjects)), 0
    with progress_bar(label or task.name, "prompts", show=progress) as bar:
        for batch in task.batches(step):
            bar(at, len(task))
            inputs, edits, reads = list[Input](), list[Hook](), list[Hook]()
            for s, subject in enumerate(subjects):
                own = {f"{s}.{one.name}": one.clean for one in batch.examples}
                inputs += subject.inputs(own)
                edits += subject.edits(list(own))
            for one in batch.examples:
                names = tuple(f"{s}.{one.name}" for s in range(len(subjects)))
                read = Gather((*one.correct, *one.wrong))
                reads.append(capture("logits", reduce=read, positions=-1, inputs=names))
            run = first.client.run(inputs, hooks=edits, capture=reads, model=first.model, progress=False)
            for i, one in enumerate(batch.examples):
                for s in range(len(subjects)):
                    logits = run.inputs[f"{s}.{one.name}"]["logits"][0].astype(np.float64)
                    n = len(one.correct)
                    found[s, at + i] = logits[:n].mean() - logits[n:].mean()
            at += len(batch)
    return found


def clusters_of(task: FittedTask) -> list[str]:
    """What examples have in common, by which they are resampled: their template, else the prompt itself."""
    return [one.example.labels.get("template", one.example.clean) for one in task.examples]
