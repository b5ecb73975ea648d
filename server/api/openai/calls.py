"""Calls of tools, read back from what a model writes."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from ....protos.generation.messages import ToolCall, ToolFormat

__all__ = ["CallReader", "call_json", "mark_of"]

_SEPARATORS = "[],; \n\t\r"


class CallReader:
    """Follows one choice token by token. What is no call stays text, to the letter."""

    def __init__(self, form: ToolFormat, *, many: bool, key: str) -> None:
        """`many`: more calls than the first are kept; `key`: what the calls' ids are made of."""
        self._form, self._many, self._key = form, many, key
        self._markers = {marker.id: marker.text for marker in form.markers}
        self._mark = mark_of(form)
        marks = {self._mark, *(text.strip() for text in (form.opening, form.closing, form.between or ""))}
        self._marks = sorted((text for text in marks if text), key=len, reverse=True)
        self._held, self._opened, self._plain = "", False, False

    def add(self, token: int, text: str) -> str:
        """The text of a token that is known now to be no part of a call."""
        self._held += text + self._markers.get(token, "")
        if self._opened:
            return ""
        return self._before_mark() if self._mark else self._unless_bare()

    def _before_mark(self) -> str:
        place = self._held.find(self._mark)
        if place < 0:
            kept = next(n for n in range(len(self._mark) - 1, -1, -1) if self._held.endswith(self._mark[:n]))
            place = len(self._held) - kept
        else:
            self._opened = True
        said, self._held = self._held[:place], self._held[place:]
        return said

    def _unless_bare(self) -> str:
        begins = self._held.lstrip()[:1]
        self._plain = self._plain or (bool(begins) and begins not in "{[")
        if not self._plain:
            return ""
        said, self._held = self._held, ""
        return said

    def end(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest of the text, and the calls."""
        calls, place = list[ToolCall](), self._skip(0)
        while self._held[place : place + 1] == "{" and (found := self._call(place, len(calls))) is not None:
            call, end = found
            calls.append(call)
            place = self._skip(end)
        if not calls:
            return self._held, ()
        return self._held[place:], tuple(calls if self._many else calls[:1])

    def _skip(self, place: int) -> int:
        """Past what stands between calls."""
        while place < len(self._held):
            mark = next((mark for mark in self._marks if self._held.startswith(mark, place)), None)
            if mark is None and self._held[place] not in _SEPARATORS:
                break
            place += len(mark or " ")
        return place

    def _call(self, place: int, index: int) -> tuple[ToolCall, int] | None:
        try:
            raw, end = json.JSONDecoder().raw_decode(self._held, place)
            found = cast("dict[str, Any]", raw)
            name, arguments = found.get(self._form.name_key), found.get(self._form.arguments_key, {})
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            return None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return None
        # Nine letters and digits: some templates take no other id back.
        own = hashlib.sha256(f"{self._key}/{index}".encode()).hexdigest()[:9]
        return ToolCall(own, name, json.dumps(arguments, ensure_ascii=False)), end


def mark_of(form: ToolFormat) -> str:
    """What opens calls, the white space and brackets behind it left out; empty where a text that begins with a call is one."""
    opening = form.opening.strip()
    own = next((marker.text for marker in form.markers if opening.startswith(marker.text)), None)
    mark = own or (opening.split() or [""])[0]
    return "" if mark == "[" else mark


def call_json(call: ToolCall, index: int | None = None) -> dict[str, Any]:
    """As OpenAI has it; with an index in a stream."""
    told = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return told if index is None else {"index": index, **told}
