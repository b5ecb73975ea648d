"""The engine's paged cache, spoken to in one way: transformers 5.17 and those after it name and shape things otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache as memoised
from inspect import signature
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..model.limits import Limits
from .devices.spread_cache import nowhere, spread_over

__all__ = ["batch_processor", "updated"]


def batch_processor(
    model: Any, generation: GenerationConfig, limits: Limits, devices: Sequence[torch.device] = ()
) -> Any:
    """The engine over a model whose attention is "sdpa"; on transformers 5.17 it is "paged|sdpa" afterwards.

    `devices`: of each layer, where they are not all on one.
    """
    name = "paged|sdpa" if "paged|sdpa" in ALL_ATTENTION_FUNCTIONS else "sdpa"
    model.config._attn_implementation_internal = name
    manager = ContinuousBatchingManager(model, generation, _config(limits))
    # The public `start` would run it on a thread of its own.
    create = manager._create_batch_processor  # pyright: ignore[reportPrivateUsage] - see above
    if not devices:
        return create()
    with nowhere():
        processor: Any = create()
    spread_over(processor.cache, devices)
    return processor


def _config(limits: Limits) -> ContinuousBatchingConfig:
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    asked: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": limits.page_tokens,
        "num_blocks": limits.n_pages,
        "max_batch_tokens": limits.chunk_tokens,
        "max_requests_per_batch": limits.n_slots,
        "max_blocks_per_request": 0,
        "allow_block_sharing": False,
        "use_async_batching": False,
        "use_cuda_graph": False,  # a replayed graph runs no Python, so hooks would silently do nothing
        "safety_margin": 0.0,
    }
    if "auto_switch_to_flash" in known:
        asked["auto_switch_to_flash"] = False
    return ContinuousBatchingConfig(**asked)


def updated(
    cache: Any, key: torch.Tensor, value: torch.Tensor, layer: int, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Keep new keys and values, [1, kv_head, row, d_head], and read those that `kwargs["read_index"]` names.

    Gives [1, kv_head, key, d_head] twice, and where each sequence's begin: [sequence + 1].
    """
    if _takes_kwargs(type(cache)):
        given = dict(kwargs)
        key, value = cache.update(key_states=key, value_states=value, layer_idx=layer, kwargs=given)
        return key, value, given["cu_seq_lens_k"]
    key, value = cache.update(
        key_states=key,
        value_states=value,
        layer_idx=layer,
        read_index=kwargs["read_index"],
        write_index=kwargs["write_index"],
    )
    starts = kwargs["cu_seq_lens_k"]
    if isinstance(starts, dict):
        windowed = kwargs.get("sliding_window") is not None
        starts = cast("dict[str, torch.Tensor]", starts)["sliding_attention" if windowed else "full_attention"]
    return key.transpose(0, 1)[None], value.transpose(0, 1)[None], starts


@memoised
def _takes_kwargs(kind: type[Any]) -> bool:
    return "kwargs" in signature(kind.update).parameters
