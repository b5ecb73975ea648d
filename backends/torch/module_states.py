"""What a model leaves in its own modules from one cached forward to the next, kept apart for each sequence."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["ModuleStates"]


class ModuleStates:
    """Tensors that are plain attributes of modules (recurrent_gemma keeps its recurrent states so)."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._places: list[tuple[nn.Module, str]] = []

    def find(self, forward: Callable[[], Any]) -> None:
        """Where a cached forward leaves some."""
        before = self._tensors()
        forward()
        after = self._tensors()
        self._places = [
            (module, name) for (module, name), value in after.items() if before.get((module, name)) is not value
        ]
        self._clear()

    def empty(self) -> list[Any]:
        """Of a sequence of which nothing has been read."""
        return [None] * len(self._places)

    @contextmanager
    def put(self, values: list[Any]) -> Generator[None]:
        """A forward of the sequence that has these; afterwards they are what it leaves, and the modules have none."""
        for (module, name), value in zip(self._places, values, strict=True):
            setattr(module, name, value)
        try:
            yield
            values[:] = [getattr(module, name) for module, name in self._places]
        finally:
            self._clear()

    def _clear(self) -> None:
        for module, name in self._places:
            setattr(module, name, None)

    def _tensors(self) -> dict[tuple[nn.Module, str], torch.Tensor]:
        return {
            (module, name): value
            for module in self._modules
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
