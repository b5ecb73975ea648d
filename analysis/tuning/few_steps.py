"""A few plain steps on a model that has been changed already, and what they add, step by step. No files, no checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ...clients.progress import Bar
from ...protos.errors import FailedPrecondition
from ...protos.variants.delta import Delta
from .base import Base
from .config import TuneConfig
from .examples import TokenExample, batch_of
from .tuning import prepared

__all__ = ["few_steps", "put_into"]


def put_into(base: Base, deltas: Mapping[str, Delta]) -> None:
    """Add deltas to the loaded weights, for good."""
    torch: Any = import_module("torch")
    base.expand(tuple(deltas))  # names that it has not are refused before any is changed
    for name, delta in deltas.items():
        module = base.module(name)
        dense: Any = torch.tensor(delta.dense(), dtype=module.weight.dtype, device=module.weight.device)
        module.weight.data += dense if type(module).__name__ == "Conv1D" else dense.T
        if delta.bias is not None:
            bias: Any = torch.tensor(delta.bias, dtype=module.weight.dtype, device=module.weight.device)
            if module.bias is None:
                module.bias = torch.nn.Parameter(torch.zeros_like(bias), requires_grad=False)
            module.bias.data += bias


def few_steps(
    base: Base, lessons: Sequence[TokenExample], config: TuneConfig, counts: Sequence[int], bar: Bar
) -> list[dict[str, Delta]]:
    """Deltas after each number of steps of AdamW; batches are drawn without replacement until all have been seen."""
    torch: Any = import_module("torch")
    objective = prepared(base, config)
    assert objective.adapter is not None, "method lora"
    learning = [one for one in base.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=config.lr, betas=config.betas, weight_decay=0.0)
    rng, order = np.random.default_rng(config.seed), list[int]()
    found: list[dict[str, Delta]] = []
    for step in range(counts[-1]):
        bar(step, counts[-1])
        while len(order) < min(config.batch_size, len(lessons)):
            order += [int(i) for i in rng.permutation(len(lessons))]
        chosen, order = order[: config.batch_size], order[config.batch_size :]
        objective.step = step
        loss = objective(batch_of([lessons[i] for i in chosen], config.device))
        if not bool(torch.isfinite(loss.detach())):
            raise FailedPrecondition(f"the loss is {float(loss.detach())} at step {step + 1}; lower lr = {config.lr:g}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, config.clip)
        optimizer.step()
        if step + 1 in counts:
            found.append({name: Delta(a, b) for name, (a, b) in objective.adapter.deltas().items()})
    return found
