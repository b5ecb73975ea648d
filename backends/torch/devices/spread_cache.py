"""The engine's paged cache over several devices: the keys and values of each layer lie where the layer computes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers.generation.continuous_batching import continuous_api

__all__ = ["nowhere", "spread_fault", "spread_over"]


def spread_fault() -> str:
    """Why this transformers can keep the cache on one device alone, or empty."""
    if find_spec("transformers.generation.continuous_batching.cache_allocators") is not None:
        return ""
    return (
        f"transformers {transformers.__version__} keeps the keys of a batch on one device; 5.23 can be told otherwise"
    )


@contextmanager
def nowhere() -> Generator[None]:
    """A cache that is made inside takes no memory: as one piece it may be larger than any device."""
    api: Any = continuous_api
    theirs = api.PagedAttentionCache

    def made(**given: Any) -> Any:
        return theirs(**{**given, "device": torch.device("meta")})

    api.PagedAttentionCache = made
    try:
        yield
    finally:
        api.PagedAttentionCache = theirs


def spread_over(cache: Any, devices: Sequence[torch.device]) -> None:
    """Give a cache that was made `nowhere` memory on the device of each layer.

    Theirs lays a page's layers one behind the other, so that a page number steps over all of them; here each layer's
    pages lie together.
    """
    for allocator in cache.cache_allocators.values():
        layers = list(allocator._kv_token_views)
        n_rows = len(allocator._kv_token_views[layers[0]][0])
        n_pages = n_rows // allocator.block_physical_stride
        allocator.block_physical_stride = allocator.tokens_per_page
        allocator.write_trash_index = allocator.tokens_per_page * allocator.blocks_per_sector
        shape = n_pages * allocator.tokens_per_page, allocator.num_key_value_heads, allocator.head_dim
        zeros = partial(torch.zeros, shape, dtype=allocator.cache_dtype)
        allocator._kv_token_views = {
            layer: (zeros(device=devices[layer]), zeros(device=devices[layer])) for layer in layers
        }
        allocator._kv_page_views = {}  # of kernels that we do not use
