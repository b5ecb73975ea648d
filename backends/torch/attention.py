"""The attention function that a probed model calls: the stock kernel, plus the sites that live inside attention.

transformers looks attention up by name in one registry. The "sdpa" entry is replaced by a dispatcher that hands
modules of a probed model to their `Attention`, and every other module to the stock function.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..hooks.executor import Executor
from ..hooks.points import Point
from ..hooks.row_span import RowSpan
from ..hooks.run_parts import RunParts
from ..hooks.sweeps import SharedPrefix
from .kept_keys import KeptKeys
from .packed import Packed
from .paged_cache import updated

__all__ = ["Attention"]

_MARK = "_probewire_attention"


class Attention:
    """Taps q, k, v, scores and probabilities of one model; stock attention where nobody asks for the last two."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.capped = False
        """A call came with a softcap or sinks, which the fused kernel does not have."""
        self.recording: SharedPrefix | None = None
        """Where this forward's keys and values are kept for a sweep's variants."""
        self.packed: Packed | None = None
        """The engine's sequences, while it is they whose forward this is."""
        self.witness: Callable[..., None] | None = None
        """Told of each call and what came of it, while a model's parts are looked for."""
        self._points: dict[int, dict[str, Point]] = {}
        """Layer → what its taps are called: every layer of every forward asks for these."""
        self._growing: RunParts | None = None
        """A run that is made in parts, whose keys and values this forward adds to."""
        self._earlier: tuple[SharedPrefix | RunParts, int] | None = None
        """Whose keys and values come before this forward's own, and how many of them."""
        self._kept: KeptKeys | None = None
        """Where the library's own cache puts earlier keys and values before this forward's."""

    @classmethod
    def over(cls, model: nn.Module, executor: Executor) -> Attention:
        """One that answers for all attention modules of a model."""
        attention = cls(executor)
        for module in model.modules():
            if hasattr(module, "layer_idx") and "Attention" in type(module).__name__:
                attention.attach(module)
        return attention

    def attach(self, module: nn.Module) -> None:
        """Answer for an attention module from now on."""
        setattr(module, _MARK, self)

    @contextmanager
    def growing(self, parts: RunParts) -> Generator[None]:
        """A forward over the next rows of a run."""
        self._earlier, self._growing = (parts, parts.done), parts
        try:
            yield
        finally:
            self._earlier = self._growing = None

    @contextmanager
    def continuing(self, prefix: SharedPrefix, position: int) -> Generator[None]:
        """Forwards of rows from `position` on, after a prefix's own keys and values."""
        self._earlier = prefix, position
        try:
            yield
        finally:
            self._earlier = None

    @contextmanager
    def after_kept(self, stop: int) -> Generator[None]:
        """A forward of one sequence up to position `stop`, whose earlier keys and values the library keeps."""
        self._kept = KeptKeys(stop)
        try:
            yield
        finally:
            self._kept = None

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """q [batch, head, row, d_head]; k, v [batch, kv_head, row, d_head]. Returns [batch, row, head, d_head]."""
        layer, executor = int(module.layer_idx), self.executor
        wanting, z = list[RowSpan](), None
        if executor.asked:
            points = self._points_of(layer)
            query = self._tap_heads(points["q"], query)
            if self._kept is None:
                key, value = self._tap_heads(points["k"], key), self._tap_heads(points["v"], value)
            else:
                self._kept.tap(executor, points, query.shape[2], key, value)
            wanting = executor.wanting(points["attn_scores"], points["attn_probs"])
            z = points["z"] if points["z"] in executor.asked else None
        if self.recording is not None:
            self.recording.keys[layer], self.recording.values[layer] = key, value
        if self._earlier is not None:
            key, value, attention_mask = self._after_prefix(layer, query, key, value, kwargs.get("sliding_window"))
        if self._growing is not None:
            self._growing.keys[layer], self._growing.values[layer] = key, value
        capped = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
        self.capped = self.capped or capped
        kernel = _eager if capped else sdpa_attention_forward
        if cache is None:
            out, _ = kernel(module, query, key, value, attention_mask, **kwargs)
        else:
            assert self.packed is not None
            assert attention_mask is not None
            if not wanting and not capped and z is None:
                out = self.packed.together(query, key, value, cache, layer, kwargs)
                if out is not None:
                    return out, None
            key, value, starts = updated(cache, key, value, layer, kwargs)
            out = self.packed.one_by_one(kernel, module, query, key, value, attention_mask, starts, kwargs)
        if self.witness is not None:
            self.witness(module, query, key, value, out, kwargs.get("sliding_window"))
        if wanting and out.requires_grad:
            out = out.clone()  # the kernel keeps its output for the backward pass
        if wanting and self._kept is not None:
            if fault := self._kept.fault(query.shape[2], key.shape[2], kwargs.get("sliding_window")):
                points = self._points_of(layer)
                executor.fail_wanting((points["attn_scores"], points["attn_probs"]), fault)
            key, value = self._kept.whole(key), self._kept.whole(value)
        for slot in wanting:
            if slot.error is None:
                out[slot.batch, slot.start : slot.stop] = self._one(
                    module,
                    slot,
                    layer,
                    query,
                    key,
                    value,
                    packed=cache is not None or self._earlier is not None or self._kept is not None,
                    **kwargs,
                )
        return (out if z is None else executor.tap(z, out)), None

    def _after_prefix(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """All keys and values, and which of them each row may see: [1, 1, row, key]."""
        assert self._earlier is not None
        prefix, position = self._earlier
        batch = key.shape[0]
        if position:
            key, value = (
                torch.cat([kept[layer][:, :, :position].expand(batch, -1, -1, -1), own], dim=2)
                for kept, own in ((prefix.keys, key), (prefix.values, value))
            )
        hidden = _hidden_keys(position, query.shape[2], key.shape[2], window, query.device)
        return key, value, ~hidden[None, None]

    def _points_of(self, layer: int) -> dict[str, Point]:
        if layer not in self._points:
            self._points[layer] = self.executor.points.attention(layer)
        return self._points[layer]

    def _tap_heads(self, point: Point, tensor: torch.Tensor) -> torch.Tensor:
        if point not in self.executor.asked:
            return tensor
        return self.executor.tap(point, tensor.transpose(1, 2)).transpose(1, 2)

    def _one(
        self,
        module: Any,
        slot: RowSpan,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        packed: bool,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One sequence's attention, step by step, with its scores and probabilities tapped: [row, head, d_head]."""
        start, stop = slot.keys if packed and slot.keys is not None else (0, slot.stop)
        groups = getattr(module, "num_key_value_groups", 1)
        keys = repeat_kv(key[slot.batch : slot.batch + 1, :, start:stop], groups)[0]
        values = repeat_kv(value[slot.batch : slot.batch + 1, :, start:stop], groups)[0]
        scores = torch.matmul(query[slot.batch, :, slot.start : slot.stop], keys.transpose(1, 2)) * kwargs["scaling"]
        if (cap := kwargs.get("softcap")) is not None:
            scores = torch.tanh(scores / cap) * cap
        hidden = _hidden(slot, stop - start, kwargs.get("sliding_window"), scores.device)
        scores = scores.masked_fill(hidden[None], float("-inf")).transpose(0, 1)
        slot.masked = hidden[:, None]
        points = self._points_of(layer)
        scores = self.executor.tap_one(points["attn_scores"], slot, scores)
        if kwargs.get("s_aux") is None:
            self.executor.require_keys(points["attn_scores"], slot, scores)
        probs = _softmax(scores.transpose(0, 1)[None], kwargs.get("s_aux"))[0].to(query.dtype).transpose(0, 1)
        probs = self.executor.tap_one(points["attn_probs"], slot, probs)
        return torch.matmul(probs.transpose(0, 1), values).transpose(0, 1)


def _hidden(slot: RowSpan, n_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which keys each row cannot see: [row, key]. Keys are the positions 0 … n_keys − 1."""
    return _hidden_keys(slot.position, slot.n, n_keys, window, device)


def _hidden_keys(position: int, n_rows: int, n_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    keys = torch.arange(n_keys, device=device)[None]
    rows = torch.arange(position, position + n_rows, device=device)[:, None]
    hidden = keys > rows
    return hidden if window is None else hidden | (keys <= rows - window)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Over the keys, in float32 at least; a sink takes its share and is dropped. scores [batch, head, row, key]."""
    dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
    if sinks is None:
        return torch.softmax(scores, dim=-1, dtype=dtype)
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    return torch.softmax(torch.cat([scores, column.to(scores.dtype)], dim=-1), dim=-1, dtype=dtype)[..., :-1]


def _eager(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with softcap and sinks, as the stock kernel is called. Gives [batch, row, head, d_head]."""
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is None:
        n, n_keys = query.shape[2], key.shape[2]  # earlier keys come first
        attention_mask = torch.ones(n, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n)
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    else:
        scores = scores + attention_mask
    probs = _softmax(scores, s_aux).to(query.dtype)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), None


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    probed = getattr(module, _MARK, None)
    return (sdpa_attention_forward if probed is None else probed)(module, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS["sdpa"] = _dispatch
