"""Whether each module's rows come piece by piece, with a cache, as they come in one forward: what raw hooks of generations rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .taps import first_of

__all__ = ["RawRows", "differing"]

Key = tuple[str, str]
"""(path, side)"""


class RawRows:
    """What modules read and gave, over the forwards of one sequence: [1, row, …] or nothing that can be matched to rows."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self.pieces: dict[Key, list[torch.Tensor]] = {}
        self.sizes: list[int] = []

    def note(self, n_rows: int, forward: Callable[[], Any]) -> None:
        """One forward over so many rows."""
        self.sizes.append(n_rows)
        handles = [
            module.register_forward_hook(self._hook(path, n_rows), with_kwargs=True)
            for path, module in self._modules.items()
        ]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, path: str, n_rows: int) -> Callable[..., None]:
        def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs.get("hidden_states")
            for side, value in (("input", read), ("output", first_of(output))):
                if isinstance(value, torch.Tensor) and value.ndim >= 3 and tuple(value.shape[:2]) == (1, n_rows):
                    self.pieces.setdefault((path, side), []).append(value.detach().clone())

        return after


def differing(whole: RawRows, pieces: RawRows, tolerance: float) -> dict[Key, str]:
    """Those of the whole forward's modules that do not come so in pieces, with the reason."""
    return {key: fault for key, found in whole.pieces.items() if (fault := _fault(found, key, pieces, tolerance))}


def _fault(found: list[torch.Tensor], key: Key, pieces: RawRows, tolerance: float) -> str:
    got = pieces.pieces.get(key, [])
    if [one.shape[1] for one in got] != pieces.sizes or any(one.shape[2:] != found[0].shape[2:] for one in got):
        return "while generating, the model calls this module otherwise, or not at all"
    expected, rows = (torch.cat(parts, dim=1) for parts in (found, got))
    if expected.is_complex():
        expected, rows = torch.view_as_real(expected), torch.view_as_real(rows)
    expected, rows = expected.double(), rows.double()
    error = float((rows - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    return "" if error <= tolerance else f"while generating, its rows differ from a run's by {error:.2g} (relative)"
