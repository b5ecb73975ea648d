"""How a chat template writes calls of tools, learnt from what it writes of one and of two.

What a model is asked to write is what its template writes of an earlier turn: what stands around the JSON objects is the
form. Templates that write calls in another form than JSON have none here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from ....protos.generation.messages import Message, Tool, ToolCall, ToolFormat, ToolMarker
from .chat import rendered
from .codec import Codec

__all__ = ["tool_format"]

_NAME, _OTHER = "count_red_apples", "count_green_pears"
_ARGUMENTS: dict[str, Any] = {"basket": "seven"}
_ASKED = Message("user", "How many are there?")
_PARAMETERS = json.dumps({"type": "object", "properties": {"basket": {"type": "string"}}})
_TOOLS = tuple(Tool(name, "Counts fruit.", _PARAMETERS) for name in (_NAME, _OTHER))


def tool_format(codec: Codec, *, parts: bool, ends: Sequence[str], hidden: frozenset[int]) -> ToolFormat | None:
    """`ends`: texts of the tokens that end a turn; `hidden`: tokens that are no part of a text given out."""
    chat = codec.chat
    if not chat.chat_template:
        return None
    try:
        before = rendered(chat, [_ASKED], parts=parts, reply=True, tools=_TOOLS)
        one = _written(chat, before, (_NAME,), parts=parts, ends=ends)
    except Exception:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
        return None
    calls = list(_objects(one)) if one is not None and _NAME in before else []
    named = [(start, end, keys) for start, end, found in calls if (keys := _keys(found)) is not None]
    if one is None or len(named) != 1:
        return None
    [(start, end, (name_key, arguments_key))] = named
    opening, closing = _without_thought(one[:start]), one[end:]
    between = _between(chat, before, parts=parts, ends=ends)
    ids = {i for text in (opening, closing, between or "") for i in codec.encode(text)} & hidden
    markers = tuple(ToolMarker(i, codec.raw(i).decode(errors="replace")) for i in sorted(ids))
    return ToolFormat(opening, closing, name_key, arguments_key, between, markers)


def _without_thought(text: str) -> str:
    """What some templates write before a call of thoughts that there are none of; a model writes its own."""
    _, thought, behind = text.rpartition("</think>")
    return behind.lstrip() if thought else text


def _written(chat: Any, before: str, names: Sequence[str], *, parts: bool, ends: Sequence[str]) -> str | None:
    """What the template writes of a reply that calls tools, up to the end of its turn."""
    calls = tuple(ToolCall(f"call0000{i}", name, json.dumps(_ARGUMENTS)) for i, name in enumerate(names))
    whole = rendered(chat, [_ASKED, Message("assistant", "", calls)], parts=parts, reply=False, tools=_TOOLS)
    if not whole.startswith(before):
        return None
    found = whole[len(before) :]
    cuts = [place for end in ends if end and (place := found.find(end)) >= 0]
    return found[: min(cuts)] if cuts else found


def _between(chat: Any, before: str, *, parts: bool, ends: Sequence[str]) -> str | None:
    try:
        two = _written(chat, before, (_NAME, _OTHER), parts=parts, ends=ends)
    except Exception:  # noqa: BLE001 - many templates refuse two
        return None
    found = [(start, end) for start, end, item in _objects(two or "") if _keys(item) is not None]
    return two[found[0][1] : found[1][0]] if two is not None and len(found) == 2 else None


def _objects(text: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Where JSON objects stand in a text, the outermost ones."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        try:
            found, end = decoder.raw_decode(text, place)
        except ValueError:
            end = place + 1
        else:
            yield place, end, cast("dict[str, Any]", found)
        place = text.find("{", end)


def _keys(found: dict[str, Any]) -> tuple[str, str] | None:
    """Under which keys a call has its name and its arguments; None for what is no call."""
    names = [key for key, value in found.items() if value in (_NAME, _OTHER)]
    arguments = [key for key, value in found.items() if value == _ARGUMENTS]
    return (names[0], arguments[0]) if names and arguments else None
