"""lm-evaluation-harness as measures of a validation: its tasks' items, base and changed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ...protos.errors import InvalidArgument, NotFound
from . import harness
from .harness_tasks import DOCUMENTATION, HARNESS_TASKS, write_harness_tasks
from .subject import Subject
from .suites import Measure

__all__ = ["harness_measures"]

_METRICS = ("acc", "exact_match", "acc_norm")
"""Of an item; the first that a task has is compared."""


def harness_measures(
    subjects: Sequence[Subject], names: Sequence[str], bound: float, *, n: int = 200, seed: int = 0
) -> list[Measure]:
    """One measure a task: its items' scores, from two evaluations of at most `n` items.

    Raises FailedPrecondition where the harness is missing, NotFound for a task it does not know, InvalidArgument for one
    whose items have no score of their own.
    """
    if not names:
        return []
    harness.harness_library()
    with tempfile.TemporaryDirectory() as folder:
        ours = [name for name in names if name in HARNESS_TASKS and name != DOCUMENTATION]
        write_harness_tasks(folder, ours, n=n)
        manager: Any = import_module("lm_eval.tasks").TaskManager(include_path=folder)
        if lost := [name for name in names if name not in manager.all_tasks]:
            raise NotFound(f"the harness knows no tasks {lost}; `lm-eval ls tasks` lists them")
        evaluated = [_evaluated(subject, names, manager, n, seed) for subject in subjects]
    return [_measure(name, [found[name] for found in evaluated], bound) for name in names]


def _evaluated(subject: Subject, names: Sequence[str], manager: Any, n: int, seed: int) -> Mapping[str, list[Any]]:
    lm = harness.ProbewireLM(subject.client, subject=subject, progress=False)
    evaluate: Any = import_module("lm_eval.evaluator").simple_evaluate
    found = evaluate(
        lm, tasks=list(names), task_manager=manager, limit=n, bootstrap_iters=0, log_samples=True, random_seed=seed
    )
    return {name: sorted(samples, key=_doc_id) for name, samples in found["samples"].items()}


def _doc_id(sample: Mapping[str, Any]) -> int:
    return int(sample["doc_id"])


def _measure(name: str, samples: Sequence[list[Any]], bound: float) -> Measure:
    metric = next((metric for metric in _METRICS if samples and samples[0] and metric in samples[0][0]), None)
    if metric is None:
        raise InvalidArgument(f"the items of {name} have none of {', '.join(_METRICS)}; leave the task out")
    values = np.array([[float(sample[metric]) for sample in one] for one in samples])
    if np.isin(values, (0.0, 1.0)).all():  # right or wrong, as accuracies are
        values = values.astype(np.bool_)
    return Measure(f"{name} ({metric})", "lm-eval", lambda _: values, bound, unit="share")
