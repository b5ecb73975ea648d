"""Key-value caches that know whose rows they hold.

mlx-lm's engine splits, merges and reorders its batches; identity and position travel in the caches, which it carries
along, and never come from an index. Every layer keeps all its keys: a sliding window is a mask here, so that the
engine's rotating caches, and the families whose mlx-lm code forgets the window, are no matter.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ArraysCache, BatchKVCache, KVCache, RotatingKVCache

from ..hooks.run_parts import RunParts
from ..hooks.sequence import Sequence

__all__ = [
    "BatchCache",
    "BatchStates",
    "GrowingCache",
    "Layer",
    "Owner",
    "RunCache",
    "SequenceCache",
    "SequenceStates",
    "batches",
    "owned",
    "run_caches",
    "sequence_caches",
]


class KeysAndValues(Protocol):
    """What taps new keys and values on their way into a cache."""

    def tap_keys_values(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """[batch, kv_head, row, d_head] each."""
        ...


class Owner:
    """One generating sequence, as the caches of all its layers know it."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.uid = -1
        """Its number in the engine; -1 while it is not there."""
        self.position = 0
        """Rows in its cache, those of a forward under way included."""
        self.next_token: int | None = None
        """The token at `position`, where it is known on the host before its sequence is told."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return self  # the engine deep-copies caches to split a batch


class Layer:
    """One attention layer of a probed model; shared by all caches of that layer."""

    def __init__(self, index: int, window: int | None, probe: KeysAndValues) -> None:
        self.index, self.window, self.probe = index, window, probe

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        return self


class RunCache:
    """Stands where a cache would in a forward without history."""

    offset = 0

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing is kept."""
        return self.layer.probe.tap_keys_values(self.layer.index, keys, values)

    def make_mask(self, n: int, *_: Any, return_array: bool = False, **__: Any) -> mx.array | str | None:
        """Causal within the layer's window, whatever window the model believes in."""
        window = self.layer.window
        if return_array:
            return create_causal_mask(n, window_size=window)
        if n == 1:
            return None
        return "causal" if window is None or n <= window else create_causal_mask(n, window_size=window)


def run_caches(model: Any, layers: SequenceOf[Layer]) -> list[Any]:
    """A cache a layer for a forward without history: ours where keys and values are kept, else the library's own, empty."""
    if not hasattr(model, "make_cache"):
        return [RunCache(layer) for layer in layers]
    own = model.make_cache()
    return [
        RunCache(layer) if isinstance(cache, (KVCache, RotatingKVCache)) else cache
        for layer, cache in zip(layers, own, strict=True)
    ]


class GrowingCache(RunCache):
    """One layer's keys and values of a run that is made in parts; the next part's rows are added."""

    def __init__(self, layer: Layer, parts: RunParts) -> None:
        super().__init__(layer)
        self.parts, self.offset = parts, parts.done

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Those of the earlier parts, then the new ones, tapped."""
        keys, values = super().update_and_fetch(keys, values)
        index, parts = self.layer.index, self.parts
        if self.offset:
            keys = mx.concatenate([parts.keys[index], keys], axis=2)
            values = mx.concatenate([parts.values[index], values], axis=2)
        parts.keys[index], parts.values[index] = keys, values
        return keys, values

    def make_mask(self, n: int, *_: Any, **how: Any) -> mx.array | str | None:
        """Causal within the layer's window, after the earlier parts' rows."""
        if not self.offset:
            return super().make_mask(n, **how)
        return create_causal_mask(n, offset=self.offset, window_size=self.layer.window)


class SequenceCache(KVCache):
    """One layer's keys and values of one sequence outside a batch."""

    def __init__(self, layer: Layer, owner: Owner) -> None:
        super().__init__()
        self.layer, self.owner = layer, owner

    @classmethod
    def merge(cls, caches: list[SequenceCache]) -> BatchCache:
        """A batch of these sequences."""
        return BatchCache.merge(caches)


class BatchCache(BatchKVCache):
    """One layer's keys and values of a batch, left-padded: a sequence's keys end at the common end."""

    def __init__(self, left_padding: list[int]) -> None:
        super().__init__(left_padding)
        self.layer: Layer
        self.owners: list[Owner] = []
        self.unread: list[int] | None = None
        """Rows of each sequence still to come in a right-padded chunk; None when nothing is padded."""

    @classmethod
    def merge(cls, caches: list[SequenceCache]) -> BatchCache:
        """A batch of these sequences."""
        empty = all(cache.empty() for cache in caches)
        batch: Any = cls([0] * len(caches)) if empty else super().merge(caches)
        batch.layer, batch.owners = caches[0].layer, [cache.owner for cache in caches]
        return batch

    @property
    def end(self) -> int:
        """Where every sequence's keys end on the key axis."""
        return self._idx

    def take_rows(self, n: int) -> list[int]:
        """How many of a forward's n rows belong to each sequence; the rest is padding on the right."""
        if self.unread is None:
            return [n] * len(self.owners)
        rows = [min(n, left) for left in self.unread]
        self.unread = [left - own for left, own in zip(self.unread, rows, strict=True)]
        return rows

    def prepare(self, *, left_padding: Any = None, lengths: Any = None, right_padding: Any = None) -> None:
        """Told by the engine before a right-padded chunk."""
        super().prepare(left_padding=left_padding, lengths=lengths, right_padding=right_padding)
        self.unread = None if lengths is None else list(lengths)

    def finalize(self) -> None:
        """Told by the engine after it."""
        super().finalize()
        self.unread = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows, tapped."""
        return super().update_and_fetch(*self.layer.probe.tap_keys_values(self.layer.index, keys, values))

    def make_mask(self, n: int, *_: Any, **__: Any) -> mx.array:
        """Causal within the layer's window and right of the padding, before the n new rows are appended."""
        return self.mask(n, self._idx)

    def mask(self, n: int, offset: int) -> mx.array:
        """[batch, 1, row, key] of n rows whose first is at `offset` on the key axis."""
        return create_causal_mask(n, offset=offset, left_padding=self.left_padding, window_size=self.layer.window)

    def filter(self, batch_indices: list[int]) -> None:
        """Keep some sequences."""
        super().filter(batch_indices)
        self.owners = [self.owners[i] for i in batch_indices]

    def extend(self, other: BatchCache) -> None:
        """Append another batch's sequences."""
        super().extend(other)
        self.owners = self.owners + other.owners

    def extract(self, idx: int) -> SequenceCache:
        """One sequence's cache, on its own."""
        cache = SequenceCache(self.layer, self.owners[idx])
        if not self.empty():
            alone = super().extract(idx)
            cache.keys, cache.values, cache.offset = alone.keys, alone.values, alone.offset
        return cache


# ---- recurrent states: of a convolution, or a layer that keeps no keys ----


class SequenceStates(ArraysCache):
    """One layer's states of one sequence outside a batch."""

    def __init__(self, size: int, owner: Owner) -> None:
        super().__init__(size)
        self.owner = owner

    @classmethod
    def merge(cls, caches: list[SequenceStates]) -> BatchStates:
        """A batch of these sequences."""
        return BatchStates.merge(caches)


class BatchStates(ArraysCache):
    """One layer's states of a batch."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.owners: list[Owner] = []
        self.unread: list[int] | None = None
        """As in BatchCache."""

    @classmethod
    def merge(cls, caches: list[SequenceStates]) -> BatchStates:
        """A batch of these sequences."""
        batch: Any = super().merge(caches)
        batch.owners = [cache.owner for cache in caches]
        return batch

    take_rows = BatchCache.take_rows

    def prepare(self, lengths: Any = None, **how: Any) -> None:
        """Told by the engine before a right-padded chunk."""
        super().prepare(lengths=lengths, **how)
        self.unread = None if lengths is None else list(lengths)

    def finalize(self) -> None:
        """Told by the engine after it."""
        super().finalize()
        self.unread = None

    def filter(self, batch_indices: list[int]) -> None:
        """Keep some sequences."""
        super().filter(batch_indices)
        self.owners = [self.owners[i] for i in batch_indices]

    def extend(self, other: BatchStates) -> None:
        """Append another batch's sequences."""
        super().extend(other)
        self.owners = self.owners + other.owners

    def extract(self, idx: int) -> SequenceStates:
        """One sequence's states, on their own."""
        alone = SequenceStates(len(self.cache), self.owners[idx])
        alone.cache = [None if state is None else state[idx : idx + 1] for state in self.cache]
        return alone


def batches(caches: SequenceOf[Any]) -> bool:
    """Whether sequences can share a forward while they generate: every layer keeps keys, or states, and nothing else."""
    return all(isinstance(cache, RunCache) or type(cache) is ArraysCache for cache in caches)


def sequence_caches(model: Any, layers: SequenceOf[Layer], owner: Owner) -> list[SequenceCache | SequenceStates]:
    """A cache a layer for a sequence that is to generate. See `batches`."""
    return [
        SequenceCache(layer, owner) if isinstance(cache, RunCache) else SequenceStates(len(cache.cache), owner)
        for layer, cache in zip(layers, run_caches(model, layers), strict=True)
    ]


def owned(caches: list[Any]) -> BatchCache | BatchStates:
    """The one of a forward's caches that says whose rows are where: one with keys, if there is one."""
    return next((cache for cache in caches if isinstance(cache, BatchCache)), caches[0])
