"""Chat messages, and the functions that a model may call in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from ..errors import InvalidArgument

__all__ = ["ONLY_TEXT", "Message", "Tool", "ToolCall", "ToolFormat", "ToolMarker"]

ONLY_TEXT = "send text: images and sounds are not read, and of a model that sees or hears this server serves the text tower only"
"""What is said to a message with an image part."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model wrote."""

    id: str
    name: str
    arguments: str = "{}"
    """A JSON object, as text."""

    def __post_init__(self) -> None:
        json_object(self.arguments, f"the arguments of the call of {self.name!r}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call, as its chat template is told."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object", "properties": {}}'
    """A JSON schema of its arguments, as text."""

    def __post_init__(self) -> None:
        json_object(self.parameters, f"the parameters of tool {self.name!r}")


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant."""
    tool_call_id: str = ""
    """Of a tool's answer: the call that it answers."""
    name: str = ""
    """Of a tool's answer: the tool."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))
        if not isinstance(self.content, str):  # pyright: ignore[reportUnnecessaryIsInstance] - what callers may send
            raise InvalidArgument(f"a message's content must be a str, got {str(self.content)[:80]}; {ONLY_TEXT}")


@dataclass(frozen=True, slots=True)
class ToolMarker:
    """A special token in what a model writes around a call; its text is no part of the text that is given out."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls, as its chat template does: opening, JSON objects with `between` between, closing."""

    opening: str
    """Empty: a text that begins with a call is one."""
    closing: str
    name_key: str
    arguments_key: str
    between: str | None = None
    """None: one call at a time."""
    markers: tuple[ToolMarker, ...] = ()


def json_object(text: str, what: str) -> dict[str, Any]:
    """The object that a text spells. Raises InvalidArgument for anything else."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidArgument(f"{what} must be a JSON object, as text: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{what} must be a JSON object, as text, got {str(text)[:80]}")
    return cast("dict[str, Any]", found)
