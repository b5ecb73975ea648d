"""Attention of the sequences that the engine packs in one row, each over its own keys alone.

The stock kernel multiplies every row with the keys of the whole batch and masks what is not its own. Its work grows
with the square of the batch (eight sequences of 600 keys on two cores: twenty times the work of what is here), and a
mask hides no NaN: one sequence whose numbers overflow would make every other one NaN too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as SequenceOf
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..hooks.row_span import RowSpan
from .paged_cache import updated

__all__ = ["Kernel", "Packed"]

Kernel = Callable[..., tuple[torch.Tensor, None]]
"""(module, query [1, head, row, d_head], key and value [1, kv_head, key, d_head], mask, **kwargs) → [1, row, head, d_head]."""

MOST_PADDING = 2.0
"""Keys are padded to the longest sequence's as long as there are not more than so many times as many of them."""


class Packed:
    """The sequences of one forward, whose keys and values lie in the engine's paged cache."""

    def __init__(self, slots: SequenceOf[RowSpan]) -> None:
        self._slots = slots
        self._keys = [slot.keys for slot in slots if slot.keys is not None]
        assert len(self._keys) == len(slots), "the engine says of every sequence where its keys lie"
        self._n_keys = [stop - start for start, stop in self._keys]
        self._pads = len(slots) * max(self._n_keys) <= MOST_PADDING * sum(self._n_keys)
        self._pads &= all(slot.n == 1 for slot in slots)
        self._padding: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._in_window: dict[int, list[tuple[int, int]]] = {}

    def together(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Any,
        layer: int,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """Each sequence's one row, all in one kernel, for plain attention; None where they do not lie alike.

        The sequences become the batch, and the heads that share a key head its rows.
        """
        read = kwargs["read_index"]
        if not self._pads or len(read) != 1 or kwargs.get("sliding_window") is not None:
            return None
        if read[0].numel() != sum(self._n_keys):  # nothing was cached before, so that nothing is read
            return None
        index, mask = self._padded(read[0], query.dtype)
        key, value, _ = updated(cache, key, value, layer, {**kwargs, "read_index": [index]})
        n, (_, heads, _, d_head) = len(self._slots), query.shape
        key, value = (kept[0].transpose(0, 1).unflatten(0, (n, -1)).transpose(1, 2) for kept in (key, value))
        rows = query[0].transpose(0, 1).reshape(n, key.shape[1], -1, d_head)
        out = scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=kwargs["scaling"])
        return out.reshape(1, n, heads, d_head)

    def _padded(self, read_index: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each sequence's keys are, its last again and again behind them; and what hides that from its scores,
        [sequence, 1, 1, key].

        The same in every layer of a device. A sequence's own key is the padding, so that nobody's NaN comes near another's.
        """
        if read_index.device not in self._padding:
            first = torch.tensor([start for start, _ in self._keys], device=read_index.device)[:, None]
            n_keys = torch.tensor(self._n_keys, device=read_index.device)[:, None]
            column = torch.arange(max(self._n_keys), device=read_index.device)[None]
            index = read_index[(first + torch.minimum(column, n_keys - 1)).flatten()]
            mask = torch.zeros(index.numel(), dtype=dtype, device=index.device).view(len(n_keys), 1, 1, -1)
            self._padding[read_index.device] = (
                index,
                mask.masked_fill_((column >= n_keys)[:, None, None], float("-inf")),
            )
        return self._padding[read_index.device]

    def one_by_one(
        self,
        kernel: Kernel,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        starts: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """[1, row, head, d_head]. key, value and starts: as the cache gave them, all sequences' one behind the other.

        mask [1, 1, row, key] says which keys a row may see.
        """
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        for slot, (first, last) in zip(self._slots, self._ranges(starts, kwargs), strict=True):
            rows, keys = slice(slot.start, slot.stop), slice(first, last)
            own = kernel(
                module, query[:, :, rows], key[:, :, keys], value[:, :, keys], mask[:, :, rows, keys], **kwargs
            )
            out[:, rows] = own[0]
        return out

    def _ranges(self, starts: torch.Tensor, kwargs: dict[str, Any]) -> list[tuple[int, int]]:
        """Where each sequence's keys lie: of a layer with a window no more than the window's."""
        window = kwargs.get("sliding_window")
        if window is None:
            return self._keys
        if window not in self._in_window:
            self._in_window[window] = list(pairwise(starts.tolist()))
        return self._in_window[window]
