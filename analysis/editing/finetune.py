"""Constrained fine-tuning of one matrix, the baseline that every editing method is held against.

The inputs of `w_down` do not move when only it changes, so every step of gradient descent lies in the span of the training
prompts' inputs: the change is exactly low rank, and its gradient is inputs times the gradient at `mlp_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, LogProb, LowRank, Target, WeightedSum, capture, hook
from ...clients.requests.hooks import Hooks
from ...protos.tensors import Tensor
from .fact import Fact
from .solver import span
from .wording import Worded, wordings

__all__ = ["Finetuned", "finetune"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Finetuned:
    """A change as factors, and the loss on the way."""

    a: Floats
    """[d_mlp, r], orthonormal columns."""
    b: Floats
    """[r, d_model]."""
    losses: tuple[float, ...]


def finetune(
    client: Client,
    facts: Sequence[Fact],
    layer: int,
    *,
    steps: int = 25,
    lr: float = 5e-3,
    ball: float = 1.0,
    prefixes: Sequence[str] = ("",),
    hooks: Hooks = (),
    model: str = "",
) -> Finetuned:
    """Adam on the new answers' mean token log-probability, at `w_down` of a layer, ‖Δ‖_F kept to at most `ball`.

    Adam works on coordinates in an orthonormal basis of the inputs, so the change has the rank of the training prompts'
    tokens at most.
    """
    told = [one for fact in facts for one in wordings(client, fact, prefixes)]
    inputs = [Input(token_ids=one.ids, name=str(i)) for i, one in enumerate(told)]
    targets = [Target(_likelihood(one), (str(i),)) for i, one in enumerate(told)]
    listed: list[Any] = list(hooks) if isinstance(hooks, (list, tuple)) else [hooks]
    act, out = f"mlp_act.{layer}", f"mlp_out.{layer}"
    run = client.run(inputs, capture=[act], hooks=listed, model=model, progress=False)
    keys: Floats = np.concatenate([np.asarray(run.inputs[i.name][act], dtype=np.float64) for i in inputs])
    a = span(keys[np.argsort(np.linalg.norm(keys, axis=1))][:500].T)
    b = np.zeros((a.shape[1], client.describe(model).d_model))
    mean, square, losses = np.zeros_like(b), np.zeros_like(b), list[float]()
    for step in range(1, steps + 1):
        now = [*listed, hook(out, LowRank(Tensor.of(a.astype(np.float32)), Tensor.of(b.astype(np.float32))))]
        found = client.gradients(
            inputs, targets, at=[capture(out)], capture=[capture(act)], hooks=now, model=model, progress=False
        )
        losses.append(-float(np.mean(list(found.metrics().values()))))
        if losses[-1] < 0.05:
            break
        gradient = np.zeros_like(b)
        for item in (found.inputs[one.name] for one in inputs):
            x: Floats = np.asarray(item.captures[act], dtype=np.float64)
            g: Floats = np.asarray(item.gradients[out], dtype=np.float64)
            gradient -= (a.T @ x.T) @ g / len(inputs)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        b = b - lr * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        size = float(np.linalg.norm(b))
        b = b * (ball / size) if size > ball else b
    return Finetuned(a, b, tuple(losses))


def _likelihood(one: Worded) -> LogProb | WeightedSum:
    terms = tuple(LogProb(token, row) for token, row in zip(one.answer, one.rows, strict=True))
    return terms[0] if len(terms) == 1 else WeightedSum(terms, (1 / len(terms),) * len(terms))
