"""Sweeps on PyTorch: variants of one input enter a forward at the layer and position where their edits begin."""

from __future__ import annotations

from collections.abc import Generator, Sequence as SequenceOf
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...protos.sites import Site
from ..base import Sequence, StepResult
from ..executor import Executor, Slot
from ..sweeping import Trunk, columns_of, grouped, hooks_in, measure_all, swept
from .attention import Attention
from .taps import Taps

__all__ = ["TorchSweeps"]

_LOGITS = Site("logits")


class Model(Protocol):
    """What a sweep asks of the backend."""

    device: torch.device

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, row] token ids to final-norm rows."""
        ...

    def logits(self, hidden: torch.Tensor, columns: list[int] | None = None) -> torch.Tensor:
        """Logits of final-norm rows, of all tokens or of some."""
        ...

    def tap_logits(self, slot: Slot, hidden: torch.Tensor) -> torch.Tensor:
        """[1, row, vocab] of a slot, after its edits."""
        ...


class TorchSweeps:
    """Measures variants on one model."""

    def __init__(
        self, model: Model, executor: Executor, taps: Taps, attention: Attention, layers: SequenceOf[nn.Module]
    ) -> None:
        self.model, self.executor, self.taps, self.attention = model, executor, taps, attention
        self.layers = layers
        self.tuples = False
        """Layers answer with tuples."""

    def trunk(self, base: Sequence) -> Trunk:
        """See Backend.trunk."""
        trunk = Trunk(len(base.tokens), hooks_in(base.plan))
        trunk.resid = [None] * len(self.layers)
        handles: list[RemovableHandle] = []
        for index, layer in enumerate(self.layers):
            keep = partial(_keep, trunk, index)
            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True, prepend=True))
        handles.append(self.layers[0].register_forward_hook(self._note_answer))
        self.attention.recording = trunk
        try:
            [(slots, values)] = [self._plain([base])]
        finally:
            self.attention.recording = None
            for handle in handles:
                handle.remove()
        if slots[0].error is not None:
            raise slots[0].error
        trunk.measured = tuple(float(v) for v in values[0])
        return trunk

    def _note_answer(self, _: nn.Module, __: Any, output: Any) -> None:
        self.tuples = isinstance(output, tuple)

    def __call__(self, variants: SequenceOf[Sequence], trunk: Trunk | None) -> list[StepResult]:
        """See Backend.sweep."""
        measured: dict[int, Any] = {}
        errors: dict[int, Any] = {}
        if trunk is None:
            slots, values = self._plain(variants)
            measured = dict(enumerate(values))
            errors = {i: slot.error for i, slot in enumerate(slots) if slot.error is not None}
            return swept(variants, trunk, measured, errors)
        for position, entering in grouped(variants, trunk, len(self.layers)).items():
            slots = [_slot(variants[index], row, position) for row, (_, index) in enumerate(entering)]
            values = self._from(trunk, position, [layer for layer, _ in entering], slots)
            for (_, index), slot, found in zip(entering, slots, values, strict=True):
                measured[index] = found
                if slot.error is not None:
                    errors[index] = slot.error
        return swept(variants, trunk, measured, errors)

    def _plain(self, variants: SequenceOf[Sequence]) -> tuple[list[Slot], list[Any]]:
        """Whole forwards, as a run has them."""
        slots = [_slot(variant, row, 0) for row, variant in enumerate(variants)]
        ids = torch.tensor([variant.tokens for variant in variants], device=self.model.device)
        self.executor.begin(slots, tuple(ids.shape))
        self.taps.attach(self.executor.asked)
        hidden = self.model.hidden(ids)
        return slots, self._measured(slots, hidden, 0, None)

    def _from(self, trunk: Trunk, position: int, starts: list[int], slots: list[Slot]) -> list[Any]:
        """A forward of rows from `position` on, which sequences join at their layers, in order."""
        n = trunk.n_tokens - position
        self.executor.begin(slots, (len(slots), n))
        asked = [slot for slot in slots if slot.plan.by_site]
        self.taps.attach(self.executor.asked)
        ids = torch.tensor([slots[0].sequence.tokens[position:]], device=self.model.device)
        with self._joining(trunk, position, starts, slots), self.attention.continuing(trunk, position):
            hidden = self.model.hidden(ids, torch.arange(position, trunk.n_tokens, device=ids.device)[None])
        self.executor.slots = asked
        return self._measured(slots, hidden, position, trunk)

    @contextmanager
    def _joining(self, trunk: Trunk, position: int, starts: list[int], slots: list[Slot]) -> Generator[None]:
        """Layers before the first start pass on what they get; at each start, rows of the trunk join the batch."""
        handles: list[RemovableHandle] = []
        skipped = list(self.layers[: starts[0]])
        for layer in skipped:
            layer.forward = self._pass_on
        for index in sorted(set(starts)):
            here, before = starts.count(index), sum(start < index for start in starts)
            join = partial(self._join, trunk.resid[index][:, position:], here, before, slots)
            handles.append(self.layers[index].register_forward_pre_hook(join, with_kwargs=True, prepend=True))
        self.executor.slots = []
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in skipped:
                del layer.forward

    def _pass_on(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self.tuples else hidden_states

    def _join(
        self,
        rows: torch.Tensor,
        here: int,
        before: int,
        slots: list[Slot],
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        entering = rows.expand(here, -1, -1)
        hidden = torch.cat([hidden, entering]) if before else entering.clone()
        now = slots[: before + here]
        self.executor.slots = [slot for slot in now if slot.plan.by_site]
        self.executor.layout = (len(now), rows.shape[1])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _measured(self, slots: list[Slot], hidden: torch.Tensor, position: int, trunk: Trunk | None) -> list[Any]:
        """[target] of each slot, on the host."""
        metrics = slots[0].sequence.metrics
        at = [metric.position - position for metric in metrics]  # below 0: nothing from here on can change it
        tapped = any(_LOGITS in slot.plan.taps for slot in slots)
        columns = None if tapped else columns_of(metric.metric for metric in metrics)
        if tapped:
            whole = [self.model.tap_logits(slot, hidden)[0] for slot in slots]
            rows = torch.stack([torch.stack([logits[max(i, 0)] for i in at]) for logits in whole])
        else:
            rows = self.model.logits(torch.stack([hidden[:, max(i, 0)] for i in at], 1), columns)
        values = measure_all(self.executor, slots, self.executor.ops.f32(rows), columns).double().cpu().numpy()
        self.executor.collect()
        if trunk is not None:
            for target, i in enumerate(at):
                if i < 0:
                    values[:, target] = trunk.measured[target]
        return list(values)


def _slot(sequence: Sequence, row: int, position: int) -> Slot:
    tokens = np.array(sequence.tokens[position:], dtype=np.int64)
    slot = Slot(sequence, row, 0, len(tokens), position, tokens)
    slot.keys = (0, len(sequence.tokens))
    return slot


def _keep(trunk: Trunk, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    trunk.resid[index] = hidden.clone()  # edits in place must not reach it
