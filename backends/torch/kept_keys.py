"""Keys and values of one sequence as the library's own cache hands them to attention: earlier ones before the forward's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..hooks.executor import Executor
from ..hooks.points import Point

__all__ = ["KeptKeys"]


class KeptKeys:
    """One forward's, over all its layers."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        """Position after the forward's last row."""
        self._seen: dict[int, torch.Tensor] = {}
        """Of layers so far, by where they lie: held, so that no later one can lie there."""

    def tap(
        self, executor: Executor, points: Mapping[str, Point], n_rows: int, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Show the new rows of [1, kv_head, key, d_head] to the hooks; edits are written into what the cache keeps."""
        for name, tensor in (("k", key), ("v", value)):
            point, shared = points[name], tensor.data_ptr() in self._seen
            self._seen[tensor.data_ptr()] = tensor
            if point not in executor.asked:
                continue
            if shared or tensor.shape[2] < n_rows:
                executor.fail_wanting([point], "this layer reads keys and values that another one keeps")
                continue
            new = tensor[:, :, tensor.shape[2] - n_rows :].transpose(1, 2)
            edited = executor.tap(point, new)
            if edited is not new:
                new.copy_(edited)

    def fault(self, n_rows: int, n_keys: int, window: int | None) -> str:
        """Why keys cannot be told by their positions, or empty: those that are gone must be behind every row's window."""
        gone, first = self.stop - n_keys, self.stop - n_rows
        if gone < 0 or (gone > 0 and (window is None or gone > max(first - window + 1, 0))):
            return f"the cache has {n_keys} keys at position {self.stop}, and which they are is not known"
        return ""

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Keys or values at their own positions from 0 on: zeros, which no row sees, where a window has let them go."""
        gone = self.stop - tensor.shape[2]
        if gone <= 0:
            return tensor
        return torch.cat([tensor.new_zeros((*tensor.shape[:2], gone, tensor.shape[3])), tensor], dim=2)
