"""Gradients on PyTorch: one forward with autograd on, under the request's rules, and one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf
from typing import Any

import numpy as np
import torch

from ...protos.sites import ATTENTION_SITES, Site
from ..hooks.backward import Backward, StopForward
from ..hooks.bound import BoundBackward
from ..hooks.executor import Executor
from ..hooks.gradients import finish, one_prompt, slots_of, spread, values_of
from ..hooks.metrics import INSIDE_MLP, BoundMetric
from ..hooks.row_span import RowSpan
from ..hooks.sequence import Sequence, StepResult
from .norms import Norms
from .taps import Taps

__all__ = ["TorchBackward", "TorchGradients"]

_LOGITS = Site("logits")


class TorchBackward(Backward):
    """Watches tensors as autograd has them."""

    def _leaf(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        del site
        return value.detach().requires_grad_()

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
        head: Callable[[RowSpan, torch.Tensor, SequenceOf[int]], torch.Tensor],
        make: Callable[[BoundBackward, list[RowSpan], list[BoundMetric] | None], TorchBackward],
    ) -> None:
        """`body`: token ids to final-norm rows. `head`: these, for one slot, to its logits at positions: [row, vocab]."""
        self.executor, self.taps, self.norms = executor, taps, norms
        self.body, self.head, self.make = body, head, make

    def __call__(self, sequences: SequenceOf[Sequence], device: torch.device) -> list[StepResult]:
        """See Backend.gradients."""
        how = sequences[0].backward
        assert how is not None
        shared = one_prompt(sequences)
        slots, shares, layout = slots_of(sequences[:1] if shared else sequences)
        backward = self.make(how, slots, [s.metrics[0] for s in sequences] if shared else None)
        backward.shares = dict(enumerate(shares))
        ids = np.zeros(layout, dtype=np.int64)
        for slot in slots:
            assert slot.tokens is not None
            ids[slot.batch, : slot.stop] = slot.tokens
        try:
            with torch.enable_grad():
                hidden = self._forward(backward, slots, torch.from_numpy(ids).to(device), layout)
                values = values_of(self.executor, backward, slots, hidden, self.head)
                grads = self._of_each(backward, values) if shared else self._backward(backward, values)
        finally:
            self.executor.backward = None
        if shared:
            slots = spread(self.executor, slots[0], sequences)
        return finish(self.executor, slots, {k: v.detach() for k, v in values.items()}, grads)

    def _forward(
        self, backward: TorchBackward, slots: list[RowSpan], ids: torch.Tensor, layout: tuple[int, int]
    ) -> Any:
        """Final-norm rows; None when no metric needs them."""
        self.executor.begin(slots, layout, backward)
        self.taps.attach(self.executor.asked)
        if "ln" in backward.how.rules:
            self.norms.attach()
        backward.until = backward.last
        try:
            return self.body(ids)
        except StopForward:
            return None
        finally:
            self.norms.detach()

    def _of_each(self, backward: TorchBackward, values: dict[int, torch.Tensor]) -> dict[Any, Any]:
        """Gradients of many metrics of one forward: site → [metric, row, …], as if each were a batch's own."""
        watched = {key: tensor for key, tensor in backward.watched.items() if key[0] in backward.wanted}
        outputs, cotangents, inside = self._ends(backward, values)
        found: SequenceOf[torch.Tensor | None] = [None] * len(watched)
        if watched and outputs:
            found = torch.autograd.grad(
                outputs, list(watched.values()), cotangents, is_grads_batched=True, allow_unused=True
            )
        n, out = len(values), dict[Any, Any]()
        for ((site, _), tensor), grad in zip(watched.items(), found, strict=True):
            whole = tensor.new_zeros((n, *tensor.shape)) if grad is None else grad
            for own, within in inside.get(site, ()):
                whole = whole.index_add(0, own, within)
            if site.name in ATTENTION_SITES or site == _LOGITS:
                out.update({(site, i): whole[i] for i in range(n)})
            else:
                out[site, -1] = whole[:, 0]
        return out

    def _ends(
        self, backward: TorchBackward, values: dict[int, torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[Site, list[tuple[torch.Tensor, torch.Tensor]]]]:
        """Where the backward pass starts, and with what for each metric: [metric, …the tensor's shape].

        Then gradients inside the metrics' own MLPs, which lie before that start: (metrics, theirs) by site.
        """
        inside: dict[Site, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        n, outputs, cotangents = len(values), list[torch.Tensor](), list[torch.Tensor]()
        for layer, (above, below) in backward.cuts.items():
            own = [i for i in values if backward.metrics[i].mlp_layer == layer and values[i].requires_grad]
            if not own or not above.requires_grad:
                continue
            stacked = torch.stack([values[i] for i in own])
            eye = torch.eye(len(own), dtype=stacked.dtype, device=stacked.device)
            within = {
                site: tensor
                for (site, _), tensor in backward.watched.items()
                if site.layer == layer and site.name in INSIDE_MLP and site in backward.wanted
            }
            found: list[torch.Tensor | None] = list(
                torch.autograd.grad(
                    stacked, [below, *within.values()], eye, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
            )
            into, at = found[0], torch.tensor(own, device=above.device)
            for site, grad in zip(within, found[1:], strict=True):
                if grad is not None:
                    inside.setdefault(site, []).append((at, grad))
            if into is None:
                continue
            cotangent = above.new_zeros((n, *above.shape))
            cotangent[at] = into
            outputs.append(above)
            cotangents.append(cotangent)
        rest = [i for i in values if values[i].requires_grad and backward.metrics[i].mlp_layer not in backward.cuts]
        for i in rest:
            one = values[i].new_zeros(n)
            one[i] = 1.0
            outputs.append(values[i])
            cotangents.append(one)
        return outputs, cotangents, inside

    def _backward(self, backward: TorchBackward, values: dict[int, torch.Tensor]) -> dict[Any, Any]:
        watched = {key: tensor for key, tensor in backward.watched.items() if key[0] in backward.wanted}
        total = torch.stack(_together(values)).sum() if values else None
        if total is None or not total.requires_grad or not watched:
            return {key: torch.zeros_like(tensor) for key, tensor in watched.items()}
        found = torch.autograd.grad(total, list(watched.values()), allow_unused=True)
        pairs = zip(watched.items(), found, strict=True)
        return {key: _or_zeros(grad, tensor) for (key, tensor), grad in pairs}


def _together(values: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """On one device: a coordinate is on its layer's."""
    first, *_ = values.values()
    return [value.to(first.device) for value in values.values()]


def _or_zeros(grad: torch.Tensor | None, tensor: torch.Tensor) -> torch.Tensor:
    """Autograd says None of what the metric does not depend on."""
    return torch.zeros_like(tensor) if grad is None else grad
