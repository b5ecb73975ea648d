"""Forwards with transformers' own cache, as its `generate` makes it: of one sequence, or of a token of each of several."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedConfig

from ..alone_engine import CacheCost
from .attention import Attention
from .load import body_of
from .module_states import ModuleStates
from .raw_rows import RawRows, differing
from .stacked import Stacks, parts_of
from .taps import Taps

__all__ = ["OwnCache"]

_CACHES = ("past_key_values", "cache_params", "state")
"""What architectures call the argument, and the output that brings it back."""
_PIECES = (6, 1, 1)
"""A prompt, and two tokens after it."""
_FEW, _MORE = 3, 5
"""Rows of two prompts whose caches show what grows with them; within any window."""


@dataclass(eq=False, slots=True)
class _State:
    """Of one sequence: what the library hands from forward to forward, and what it leaves in its modules."""

    cache: Any
    inside: list[Any] = field(default_factory=list[Any])

    @property
    def held(self) -> tuple[Any, list[Any]]:
        """All of it."""
        return self.cache, self.inside


class OwnCache:
    """See BatchForward."""

    def __init__(
        self,
        model: Any,
        attention: Attention,
        taps: Taps,
        head: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        """`head`: final-norm rows to logits. Raises TypeError for a model that takes no cache."""
        self.model, self.attention, self.taps, self.head, self.device = model, attention, taps, head, device
        self.body = body_of(model)
        taken = signature(self.body.forward).parameters
        self._takes_positions, self._takes_mask = "position_ids" in taken, "attention_mask" in taken
        self._stacks: Stacks | None = None
        self._masks_eagerly = False
        self._configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self._name = next((name for name in _CACHES if name in taken), "")
        if not self._name and any(one.kind is Parameter.VAR_KEYWORD for one in taken.values()):
            self._name = _CACHES[0]
        if not self._name:
            raise TypeError(f"{type(model).__name__} takes no cache")
        self._makes_its_own = self._name == "state" or not model._supports_default_dynamic_cache()
        self._inside = ModuleStates(model)
        self._inside.find(lambda: self._size(2))

    def new_state(self) -> _State:
        """The library's cache for this config; none where the model's first forward makes its own."""
        config = self.model.config.get_text_config(decoder=True)
        return _State(None if self._makes_its_own else DynamicCache(config=config), self._inside.empty())

    @torch.inference_mode()
    def rows(self, state: _State, tokens: NDArray[np.int64], position: int) -> tuple[torch.Tensor, _State]:
        """See OwnForward."""
        return self._forward(state, tokens[None], np.array([position]), {}), state

    def _forward(
        self, state: _State, ids: NDArray[np.int64], positions: NDArray[np.int64], given: dict[str, Any]
    ) -> torch.Tensor:
        """Of token ids [batch, row], whose first rows are at given positions; the longest one's tell where keys end."""
        stop = int(positions.max()) + ids.shape[1]
        if state.cache is not None:
            given[self._name] = state.cache
        if self._takes_positions:
            given["position_ids"] = torch.from_numpy(positions[:, None] + np.arange(ids.shape[1])).to(self.device)
        tokens = torch.from_numpy(ids).to(self.device)
        with self._inside.put(state.inside), self.attention.after_kept(stop):
            output = self.body(tokens, use_cache=True, return_dict=True, **given)
        kept = output.get(self._name)
        if kept is None and state.cache is None:
            raise RuntimeError(f"{type(self.model).__name__} gives no cache back")
        state.cache = state.cache if kept is None else kept
        return output[0]

    @torch.inference_mode()
    def stacking_fault(self) -> str:
        """See BatchForward."""
        few, more, two = (self._read(*size) for size in ((1, _FEW), (1, _MORE), (2, _FEW)))
        try:
            stacks = Stacks(few.held, more.held, two.held, _FEW, _MORE)
        except ValueError as error:
            return str(error)
        if stacks.grows and not self._takes_mask:
            return "its forward takes no mask that would hide what shorter sequences are padded with"
        self._stacks = stacks
        return ""

    def mask_otherwise(self) -> bool:
        """See BatchForward. Classes that have attention of their own add a mask (gpt_neo), where ours is told what to hide."""
        before, self._masks_eagerly = self._masks_eagerly, True
        return not before

    @torch.inference_mode()
    def stack(self, states: list[_State], lengths: SequenceOf[int]) -> _State:
        """See BatchForward."""
        assert self._stacks is not None
        held = [state.held for state in states]
        kept, states[:] = list(states), []
        try:
            for state in kept:
                state.cache, state.inside = None, []
            return _State(*self._stacks.stack(held, lengths))
        except ValueError:
            states[:] = [_State(*one) for one in held]
            raise

    @torch.inference_mode()
    def unstack(self, stacked: _State, lengths: SequenceOf[int]) -> list[_State]:
        """See BatchForward."""
        assert self._stacks is not None
        taken = parts_of(stacked.held)
        stacked.cache, stacked.inside = None, []  # to be freed on the way
        return [_State(*own) for own in self._stacks.unstack(taken, lengths)]

    @torch.inference_mode()
    def rows_of_each(self, stacked: _State, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> torch.Tensor:
        """See BatchForward. What shorter sequences are padded with is masked; their keys end where the longest one's do."""
        assert self._stacks is not None
        given, longest = dict[str, Any](), int(positions.max())
        if self._stacks.grows and (positions < longest).any():
            seen = np.arange(longest + 1) >= (longest - positions)[:, None]
            given["attention_mask"] = torch.from_numpy(seen.astype(np.int64)).to(self.device)
            if self._masks_eagerly:
                with self._as_eager():
                    return self._forward(stacked, tokens[:, None], positions, given)
        return self._forward(stacked, tokens[:, None], positions, given)

    @contextmanager
    def _as_eager(self) -> Generator[None]:
        """With the masks that the library makes for attention of its own."""
        before = [config._attn_implementation_internal for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = "eager"
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name

    @torch.inference_mode()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """See OwnForward."""
        return self.head(rows)

    def attach(self) -> None:
        """See OwnForward."""
        self.taps.attach(self.taps.executor.asked)

    def held(self, states: Iterable[Any]) -> int:
        """Bytes of the tensors in some caches, each counted once."""
        storages: dict[int, int] = {}
        for tensor in _tensors(list(states), {}):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def cost(self) -> CacheCost:
        """Of one sequence, from short ones: two prompts, and one with a token after it."""
        few, more, decoded = self._size(3), self._size(5), self._size(3, 1)
        position = max(-(-(more - few) // 2), 0)
        return CacheCost(max(few - 3 * position, decoded - 4 * position, 0), position)

    @torch.inference_mode()
    def raw_faults(self, forward: Callable[[torch.Tensor], Any], tolerance: float) -> dict[tuple[str, str], str]:
        """Modules, (path, side), whose rows do not come while generating as in a whole forward over token ids [1, row]."""
        ids = torch.arange(2, 2 + sum(_PIECES))
        whole, pieces, state, start = RawRows(self.taps.modules), RawRows(self.taps.modules), self.new_state(), 0
        self.taps.executor.begin([], (1, len(ids)))
        self.attach()
        whole.note(len(ids), lambda: forward(ids[None].to(self.device)))
        for n in _PIECES:
            tokens = ids[start : start + n].numpy()
            pieces.note(n, lambda tokens=tokens, start=start: self.rows(state, tokens, start))
            start += n
        return differing(whole, pieces, tolerance)

    def _read(self, n_sequences: int, n_rows: int) -> _State:
        """What is held after a forward over so many rows of so many sequences."""
        self.taps.executor.begin([], (n_sequences, n_rows))
        self.attach()
        state = self.new_state()
        ids = np.ones((n_sequences, n_rows), dtype=np.int64)
        self._forward(state, ids, np.zeros(n_sequences, dtype=np.int64), {})
        return state

    def _size(self, *pieces: int) -> int:
        """Bytes that a sequence holds whose rows are read in such pieces."""
        state, start = self.new_state(), 0
        for n in pieces:
            self.taps.executor.begin([], (1, n))
            self.attach()
            _, state = self.rows(state, np.ones(n, dtype=np.int64), start)
            start += n
        return self.held([state])


def _tensors(value: Any, seen: dict[int, Any]) -> Iterable[torch.Tensor]:
    """Of all that a cache is made of. `seen` holds what it names: an id is good for as long as its object lives."""
    if id(value) in seen or isinstance(value, PreTrainedConfig):
        return
    seen[id(value)] = value
    parts: list[Any] = []
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        parts = list(cast("Mapping[Any, Any]", value).values())
    elif isinstance(value, (list, tuple)):
        parts = cast("list[Any]", value)
    elif isinstance(value, _State):
        parts = [value.cache, value.inside]
    elif type(value).__module__.startswith("transformers."):
        parts = list(vars(value).values())
    for part in parts:
        yield from _tensors(part, seen)
