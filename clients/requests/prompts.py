"""What a user may write for a prompt, and the named inputs that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from ...protos.errors import InvalidArgument
from ...protos.model import Input, Message
from ...protos.tensors import Array

__all__ = ["ChatMessage", "Prompt", "Prompts", "to_input", "to_inputs"]

ChatMessage = Message | Mapping[str, str]
"""A chat message, as a value or as {"role": …, "content": …}."""
Prompt = str | Input | Array | Sequence[int] | Sequence[ChatMessage] | ChatMessage
"""Text, chat messages, token ids ([pos], taken as they are), or an Input."""
Prompts = Prompt | Mapping[str, Prompt] | Sequence[Prompt]
"""One prompt; several by name; or a list of several, then named "0", "1", …"""

_ALLOWED = "text, chat messages, a list or 1-D array of token ids, an Input, or a dict or list of several of these"


def to_inputs(prompts: Prompts) -> tuple[Input, ...]:
    """The request's inputs. A lone prompt is named "input". Raises InvalidArgument for anything else."""
    if _is_mapping(prompts) and not _is_message(prompts):
        named = cast("Mapping[str, Prompt]", prompts)
        return tuple(to_input(prompt, name) for name, prompt in named.items())
    if _is_list(prompts) and not _is_single(cast("Sequence[Any]", prompts)):
        many = cast("Sequence[Prompt]", prompts)
        return tuple(
            prompt if isinstance(prompt, Input) else to_input(prompt, str(index)) for index, prompt in enumerate(many)
        )
    return (to_input(cast("Prompt", prompts)),)


def to_input(prompt: Prompt, name: str | None = None) -> Input:
    """One input; without a `name`, an Input keeps its own and all else is "input"."""
    if isinstance(prompt, Input):
        return prompt if name is None else _renamed(prompt, name)
    label = "input" if name is None else str(name)
    if isinstance(prompt, str):
        return Input(text=prompt, name=label)
    if isinstance(prompt, Message) or _is_message(prompt):
        return Input(messages=(_message(prompt),), name=label)
    if hasattr(prompt, "__array__"):
        return Input(token_ids=_ids(np.asarray(prompt)), name=label)
    if _is_list(prompt):
        return _from_list(cast("Sequence[Any]", prompt), label)
    raise InvalidArgument(f"cannot use a {type(prompt).__name__} as a prompt; allowed: {_ALLOWED}")


def _from_list(items: Sequence[Any], label: str) -> Input:
    if items and all(isinstance(item, Message) or _is_mapping(item) for item in items):
        return Input(messages=tuple(_message(item) for item in items), name=label)
    if items and all(_is_integer(item) for item in items):
        return Input(token_ids=tuple(int(item) for item in items), name=label)
    if not items:
        raise InvalidArgument(f"input {label!r} is an empty list; allowed: {_ALLOWED}")
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise InvalidArgument(f"input {label!r} is a list of {kinds}; allowed: {_ALLOWED}")


def _message(value: Any) -> Message:
    if isinstance(value, Message):
        return value
    if not _is_message(value):
        raise InvalidArgument(f"a chat message has the keys role and content, both text; got {value!r}")
    return Message(value["role"], value["content"])


def _ids(array: Array) -> tuple[int, ...]:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgument(
            f"token ids must be a 1-D array of integers, got {array.dtype} of shape {list(array.shape)}; "
            "for several prompts send a list of them, each without padding"
        )
    return tuple(array.tolist())


def _renamed(item: Input, name: str) -> Input:
    return replace(item, name=name)


def _is_single(items: Sequence[Any]) -> bool:
    """Whether a list is one prompt (ids, messages) rather than several. An empty list is refused later."""
    return all(_is_integer(item) or isinstance(item, Message) or _is_mapping(item) for item in items)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_message(value: Any) -> bool:
    return _is_mapping(value) and set(value) == {"role", "content"} and all(isinstance(v, str) for v in value.values())
