"""Gradients on PyTorch: one forward with autograd on, under the request's rules, and one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf
from typing import Any

import numpy as np
import torch

from ...protos.sites import Site
from ..backward import Backward, BoundBackward, Enough
from ..base import Sequence, StepResult
from ..executor import Executor, Slot
from ..gradients import finish, slots_of
from ..metrics import measure_logits
from .norms import Norms
from .taps import Taps

__all__ = ["TorchBackward", "TorchGradients"]

_LOGITS = Site("logits")


class TorchBackward(Backward):
    """Watches tensors as autograd has them."""

    def _watch(self, site: Site, index: int, value: torch.Tensor, *, in_place: bool) -> torch.Tensor:
        if not value.requires_grad:
            value.requires_grad_()
        # A view of its own: what else holds the tensor is not part of the site. In place, what else holds it is.
        watched = value if in_place else value.view_as(value)
        self.watched[site, index] = watched
        return watched


class TorchGradients:
    """Takes gradients on one model."""

    def __init__(
        self,
        executor: Executor,
        taps: Taps,
        norms: Norms,
        body: Callable[[torch.Tensor], torch.Tensor],
        head: Callable[[Slot, torch.Tensor], torch.Tensor],
        make: Callable[[BoundBackward, list[Slot]], TorchBackward],
    ) -> None:
        """`body`: token ids to final-norm rows. `head`: these, for one slot, to the logits that its metric reads: [vocab]."""
        self.executor, self.taps, self.norms = executor, taps, norms
        self.body, self.head, self.make = body, head, make

    def __call__(self, sequences: SequenceOf[Sequence], device: torch.device) -> list[StepResult]:
        """See Backend.gradients."""
        how = sequences[0].backward
        assert how is not None
        slots, shares, layout = slots_of(sequences)
        backward = self.make(how, slots)
        backward.shares = dict(enumerate(shares))
        ids = np.zeros(layout, dtype=np.int64)
        for slot in slots:
            assert slot.tokens is not None
            ids[slot.batch, : slot.stop] = slot.tokens
        with torch.enable_grad():
            hidden = self._forward(backward, slots, torch.from_numpy(ids).to(device), layout)
            values = self._values(backward, slots, hidden)
            grads = self._backward(backward, values)
        self.executor.backward = None
        return finish(self.executor, slots, {k: v.detach() for k, v in values.items()}, grads)

    def _forward(self, backward: TorchBackward, slots: list[Slot], ids: torch.Tensor, layout: tuple[int, int]) -> Any:
        """Final-norm rows; None when no metric needs them."""
        self.executor.begin(slots, layout, backward)
        self.taps.attach(self.executor.asked)
        if "ln" in backward.how.rules:
            self.norms.attach()
        backward.until = backward.last
        try:
            return self.body(ids)
        except Enough:
            return None
        finally:
            self.norms.detach()

    def _values(self, backward: TorchBackward, slots: list[Slot], hidden: Any) -> dict[int, torch.Tensor]:
        """Slot index → its metric."""
        values: dict[int, torch.Tensor] = {}
        for index, slot in enumerate(slots):
            if slot.error is not None:
                continue
            [metric] = slot.sequence.metrics
            row = self.head(slot, hidden) if metric.site is None or _LOGITS in slot.plan.taps else None
            if metric.site is not None:
                values[index] = backward.coordinates[index]
            else:
                values[index] = measure_logits(self.executor.ops, metric, self.executor.ops.f32(row))
        return values

    def _backward(self, backward: TorchBackward, values: dict[int, torch.Tensor]) -> dict[Any, Any]:
        watched = {key: tensor for key, tensor in backward.watched.items() if key[0] in backward.wanted}
        total = torch.stack(list(values.values())).sum() if values else None
        if total is None or not total.requires_grad or not watched:
            return {key: torch.zeros_like(tensor) for key, tensor in watched.items()}
        found = torch.autograd.grad(total, list(watched.values()), allow_unused=True)
        pairs = zip(watched.items(), found, strict=True)
        return {key: _or_zeros(grad, tensor) for (key, tensor), grad in pairs}


def _or_zeros(grad: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor:
    """Autograd says None of what the metric does not depend on."""
    return torch.zeros_like(tensor) if grad is None else grad
