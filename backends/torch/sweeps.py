"""Sweeps on PyTorch: variants of one input enter a forward at the layer and position where their edits begin."""

from __future__ import annotations

from collections.abc import Generator, Sequence as SequenceOf
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..hooks.executor import Executor
from ..hooks.row_span import RowSpan
from ..hooks.sweeps import SharedPrefix, Sweeps
from .attention import Attention
from .taps import Taps

__all__ = ["TorchSweeps"]


class Model(Protocol):
    """What a sweep asks of the backend."""

    device: torch.device

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, row] token ids to final-norm rows."""
        ...

    def logits(self, hidden: torch.Tensor, columns: list[int] | None = None) -> torch.Tensor:
        """Logits of final-norm rows, of all tokens or of some."""
        ...

    def tap_logits(self, slot: RowSpan, hidden: torch.Tensor) -> torch.Tensor:
        """[1, row, vocab] of a slot, after its edits."""
        ...


class TorchSweeps(Sweeps):
    """See backends/hooks/sweeps.py."""

    def __init__(
        self, model: Model, executor: Executor, taps: Taps, attention: Attention, layers: SequenceOf[nn.Module]
    ) -> None:
        super().__init__(executor, len(layers))
        self.model, self.taps, self.attention, self.layers = model, taps, attention, layers
        self.tuples = False
        """Layers answer with tuples."""

    def _begin(self, slots: list[RowSpan], layout: tuple[int, int]) -> None:
        self.executor.begin(slots, layout)
        self.taps.attach(self.executor.asked)

    @contextmanager
    def _recording(self, prefix: SharedPrefix) -> Generator[None]:
        handles = [self.layers[0].register_forward_hook(self._note_answer)]
        for index, layer in enumerate(self.layers):
            keep = partial(_keep, prefix, index)
            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True, prepend=True))
        self.attention.recording = prefix
        try:
            yield
        finally:
            self.attention.recording = None
            for handle in handles:
                handle.remove()

    def _note_answer(self, _: nn.Module, __: Any, output: Any) -> None:
        self.tuples = isinstance(output, tuple)

    def _whole(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        return self.model.hidden(torch.from_numpy(tokens).to(self.model.device))

    def _rest(self, prefix: SharedPrefix, position: int, starts: list[int], slots: list[RowSpan]) -> torch.Tensor:
        device = self.model.device
        ids = torch.tensor([slots[0].sequence.tokens[position:]], device=device)  # what joins takes their place
        with self._joining(prefix, position, starts, slots), self.attention.continuing(prefix, position):
            return self.model.hidden(ids, torch.arange(position, prefix.n_tokens, device=device)[None])

    @contextmanager
    def _joining(self, prefix: SharedPrefix, position: int, starts: list[int], slots: list[RowSpan]) -> Generator[None]:
        """Layers before the first start pass on what they get; at each start, rows of the prefix join the batch."""
        handles: list[RemovableHandle] = []
        skipped: list[Any] = list(self.layers[: starts[0]])
        for layer in skipped:
            layer.forward = self._pass_on
        for index in sorted(set(starts)):
            here, before = starts.count(index), sum(start < index for start in starts)
            join = partial(self._join, prefix.resid[index][:, position:], here, before, slots)
            handles.append(self.layers[index].register_forward_pre_hook(join, with_kwargs=True, prepend=True))
        self.executor.hold((), self.executor.layout)
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
        slots: list[RowSpan],
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        entering = rows.expand(here, -1, -1)
        hidden = torch.cat([hidden, entering]) if before else entering.clone()
        self.join(slots[: before + here], rows.shape[1])
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    def _logits(self, hidden: torch.Tensor, columns: list[int] | None) -> torch.Tensor:
        return self.model.logits(hidden, columns)

    def _tap_logits(self, slot: RowSpan, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.tap_logits(slot, hidden)


def _keep(prefix: SharedPrefix, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    hidden = args[0] if args else kwargs["hidden_states"]
    prefix.resid[index] = hidden.clone()  # edits in place must not reach it
