"""Whether a model in this process is the served one: by what both say to the same tokens."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ...clients import capture
from ...protos.errors import FailedPrecondition
from ..reports.subject import Subject
from .base import Base
from .examples import TokenExample

__all__ = ["require_same_model"]

FAR = 0.05
"""‖difference‖ of centred logits, relative: bfloat16 and int8 bases stay below it, another model does not."""


def require_same_model(base: Base, subject: Subject, example: TokenExample) -> None:
    """Raises FailedPrecondition where the logits behind an example's prompt differ."""
    torch: Any = import_module("torch")
    prompt = example.ids[: max(1, example.answer_at)]
    with torch.no_grad():
        ours = base.model(input_ids=torch.tensor([prompt], device=base.model.device)).logits[0, -1]
    ours = np.asarray(ours.float().cpu().numpy(), dtype=np.float64)
    [item] = subject.inputs({"one": prompt})
    read = capture("logits", positions=-1)
    run = subject.client.run([item], hooks=subject.edits(["one"]), capture=read, model=subject.model, progress=False)
    theirs = np.asarray(run.inputs["one"]["logits"][0], dtype=np.float64)
    same = ours.shape == theirs.shape
    far = (
        float(np.linalg.norm(_centred(ours) - _centred(theirs)) / np.linalg.norm(_centred(theirs))) if same else np.inf
    )
    if not far <= FAR:
        raise FailedPrecondition(
            f"{base.folder} with the removal is not what {subject.model or 'the server'} serves (their logits differ by {far:.2g}, "
            "relative); give the folder of the served model"
        )


def _centred(
    row: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return row - row.mean()
