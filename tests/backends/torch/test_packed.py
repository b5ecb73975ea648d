"""Attention over the engine's packed cache is what the stock kernel makes of it, sequence by sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from probewire.backends.hooks.row_span import RowSpan
from probewire.backends.torch.packed import Kernel, Packed

HEADS, KV_HEADS, D_HEAD, N_CACHE = 6, 2, 8, 400
SCALING = 0.3

MODULE = SimpleNamespace(layer_idx=0, num_key_value_groups=HEADS // KV_HEADS)


class Cache:
    """One layer of a paged cache: rows anywhere, read and written by index."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.key, self.value = torch.randn(2, N_CACHE, KV_HEADS, D_HEAD)

    def update(
        self, *, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (read,), (write,) = kwargs["read_index"], kwargs["write_index"]
        self.key[write], self.value[write] = (x[0].transpose(0, 1) for x in (key_states, value_states))
        if read.numel() == 0:
            return key_states, value_states
        return self.key[read].transpose(0, 1)[None], self.value[read].transpose(0, 1)[None]


class Batch:
    """Sequences of (rows of this forward, keys in all), as the engine lays them out."""

    def __init__(self, *sizes: tuple[int, int]) -> None:
        order = torch.randperm(N_CACHE, generator=torch.Generator().manual_seed(1))
        sequence = cast("Any", SimpleNamespace(plan=None))
        self.slots: list[RowSpan] = []
        read: list[torch.Tensor] = []
        write: list[torch.Tensor] = []
        row = key = 0
        for n, n_keys in sizes:
            self.slots.append(RowSpan(sequence, 0, row, row + n, n_keys - n, keys=(key, key + n_keys)))
            own = order[key : key + n_keys]
            read.append(own)
            write.append(own[-n:])
            row, key = row + n, key + n_keys
        generator = torch.Generator().manual_seed(2)
        self.query = torch.randn(1, HEADS, row, D_HEAD, generator=generator)
        self.key, self.value = torch.randn(2, 1, KV_HEADS, row, D_HEAD, generator=generator)
        fresh = all(n == n_keys for n, n_keys in sizes)
        index = torch.empty(0, dtype=torch.int64) if fresh else torch.cat(read)
        self.kwargs: dict[str, Any] = {
            "read_index": [index],
            "write_index": [torch.cat(write)],
            "cu_seq_lens_k": None,
            "scaling": SCALING,
            "sliding_window": None,
        }

    def together(self, cache: Cache, **changed: Any) -> torch.Tensor | None:
        return Packed(self.slots).together(self.query, self.key, self.value, cache, 0, self.kwargs | changed)

    def one_by_one(self, cache: Cache, **changed: Any) -> torch.Tensor:
        kwargs = self.kwargs | changed
        keys, values = cache.update(key_states=self.key, value_states=self.value, layer_idx=0, kwargs=kwargs)
        mask = torch.full((1, 1, self.query.shape[2], keys.shape[2]), float("-inf"))
        for slot in self.slots:
            assert slot.keys is not None
            at, n_keys = slice(*slot.keys), slot.keys[1] - slot.keys[0]
            mask[:, :, slot.start : slot.stop, at] = _causal(slot.n, n_keys)
        kernel = cast("Kernel", sdpa_attention_forward)
        return Packed(self.slots).one_by_one(kernel, MODULE, self.query, keys, values, mask, torch.empty(0), kwargs)

    def attend(self, cache: Cache) -> torch.Tensor:
        """As `Attention` does."""
        out = self.together(cache)
        return self.one_by_one(cache) if out is None else out

    def oracle(self, cache: Cache) -> torch.Tensor:
        """Each sequence alone, in the stock kernel under a plain causal mask."""
        outs: list[torch.Tensor] = []
        keys, values = cache.update(key_states=self.key, value_states=self.value, layer_idx=0, kwargs=self.kwargs)
        for slot in self.slots:
            assert slot.keys is not None
            at, rows = slice(*slot.keys), slice(slot.start, slot.stop)
            n_keys = slot.keys[1] - slot.keys[0]
            mask = _causal(slot.n, n_keys)
            query, key, value = self.query[:, :, rows], keys[:, :, at], values[:, :, at]
            out, _ = sdpa_attention_forward(cast("Any", MODULE), query, key, value, mask, scaling=SCALING)
            outs.append(out)
        return torch.cat(outs, dim=1)


def _causal(n: int, n_keys: int) -> torch.Tensor:
    """What hides from the last n rows the keys behind them: [1, 1, row, key]."""
    return torch.full((n, n_keys), float("-inf")).triu(n_keys - n + 1)[None, None]


BATCHES = {
    "decoding, about as long": ((1, 12), (1, 9), (1, 15), (1, 10)),
    "decoding, one far longer": ((1, 120), (1, 3), (1, 5), (1, 1), (1, 2), (1, 7)),
    "decoding alone": ((1, 33),),
    "prompts": ((5, 5), (1, 1), (9, 9)),
    "a chunk of a prompt beside decoding": ((1, 20), (8, 24), (1, 11)),
    "chunks": ((8, 16), (3, 19)),
}


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_each_sequence_sees_its_own_keys_and_all_of_them(sizes: tuple[tuple[int, int], ...]) -> None:
    batch = Batch(*sizes)
    torch.testing.assert_close(batch.attend(Cache()), batch.oracle(Cache()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
def test_new_keys_and_values_are_kept(sizes: tuple[tuple[int, int], ...]) -> None:
    ours, stock = Cache(), Cache()
    batch = Batch(*sizes)
    batch.attend(ours)
    batch.oracle(stock)
    assert torch.equal(ours.key, stock.key)
    assert torch.equal(ours.value, stock.value)


@pytest.mark.parametrize("sizes", [BATCHES["decoding, about as long"], BATCHES["prompts"], BATCHES["chunks"]])
def test_what_is_not_a_number_in_one_stays_there(sizes: tuple[tuple[int, int], ...]) -> None:
    batch = Batch(*sizes)
    last = batch.slots[-1]
    batch.value[:, :, last.start : last.stop] = float("nan")
    batch.key[:, :, last.start : last.stop] = float("inf")
    out = batch.attend(Cache())
    assert torch.isfinite(out[:, : last.start]).all()
    assert not torch.isfinite(out[:, last.start :]).any()


def test_both_ways_agree() -> None:
    batch = Batch(*BATCHES["decoding, about as long"])
    together = batch.together(Cache())
    assert together is not None
    torch.testing.assert_close(together, batch.one_by_one(Cache()), rtol=1e-5, atol=1e-6)


def test_padding_is_bounded() -> None:
    """One long sequence is not to make seven short ones read as many keys."""
    assert Batch(*BATCHES["decoding, about as long"]).together(Cache()) is not None
    assert Batch(*BATCHES["decoding, one far longer"]).together(Cache()) is None


@pytest.mark.parametrize(
    "changed",
    [{"sliding_window": 4}, {"read_index": [torch.arange(46), torch.arange(46)]}, {"read_index": [torch.arange(64)]}],
    ids=["window", "two kinds of cache", "other keys"],
)
def test_what_lies_otherwise_is_done_one_by_one(changed: dict[str, Any]) -> None:
    assert Batch(*BATCHES["decoding, about as long"]).together(Cache(), **changed) is None


def test_a_window_has_fewer_keys() -> None:
    """The cache gives a layer with a window its last keys alone, and says where they lie."""
    batch = Batch((1, 12), (2, 9))
    shorter = Batch((1, 4), (2, 5))
    torch.manual_seed(3)
    keys, values = torch.randn(2, 1, KV_HEADS, 9, D_HEAD)
    mask = torch.full((1, 1, 3, 9), float("-inf"))
    mask[:, :, :1, :4], mask[:, :, 1:, 4:] = _causal(1, 4), _causal(2, 5)
    kernel, window = cast("Kernel", sdpa_attention_forward), torch.tensor([0, 4, 9], dtype=torch.int32)
    kwargs = batch.kwargs | {"sliding_window": 4}
    out = Packed(batch.slots).one_by_one(kernel, MODULE, batch.query, keys, values, mask, window, kwargs)
    plain = batch.kwargs | {"sliding_window": None}
    expected = Packed(shorter.slots).one_by_one(kernel, MODULE, batch.query, keys, values, mask, window, plain)
    assert torch.equal(out, expected)
