"""OpenAI's `tools` and `tool_choice`, and the grammar of what a model may write of calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ....protos.generation.messages import Tool, ToolFormat
from ....protos.generation.sampling import Grammar
from ..http.fields import Fields, brief
from ..http.formats import dumps
from .calls import mark_of

__all__ = ["ToolUse", "grammar_of_calls", "tools_of"]

MAX_TOOLS = 128
_ANY = "(.|\\n)*"
_NO_CALL = "[ \\n\\t\\r]*([^{\\[ \\n\\t\\r](.|\\n)*)?"
"""A text that does not begin as a bare call does."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools."""

    tools: tuple[Tool, ...]
    required: tuple[str, ...] = ()
    """The model must call, and one of these; none: it may."""
    strict: frozenset[str] = frozenset()
    """Whose arguments keep to their schema, whenever they are called."""
    many: bool = True
    """More calls than one."""


def tools_of(fields: Fields) -> ToolUse | None:
    """None: there are no tools, or the choice is `none`."""
    raw, choice = fields.raw("tools"), fields.raw("tool_choice")
    many = fields.take("parallel_tool_calls", bool, True)
    if raw is not None and not isinstance(raw, list):
        raise InvalidArgument(f"tools must be a list, got {brief(raw)}")
    items = cast("list[Any]", raw or [])
    if len(items) > MAX_TOOLS:
        raise InvalidArgument(f"tools holds {len(items)}; at most {MAX_TOOLS} are allowed")
    told = [_tool(Fields(item, f"tools[{i}]"), f"tools[{i}]") for i, item in enumerate(items)]
    tools, names = tuple(tool for tool, _ in told), [tool.name for tool, _ in told]
    if len(set(names)) < len(names):
        raise InvalidArgument(f"tools need distinct names, got {names}")
    required = _required(choice, names)
    if not tools or choice == "none":
        return None
    return ToolUse(tools, required, frozenset(tool.name for tool, strict in told if strict), many)


def _tool(fields: Fields, path: str) -> tuple[Tool, bool]:
    kind = fields.required("type", str)
    if kind != "function":
        raise InvalidArgument(f"{path}.type is {brief(kind)}; allowed: function")
    function = Fields(fields.raw("function"), f"{path}.function")
    fields.done()
    name, description = function.required("name", str), function.take("description", str, "")
    strict, raw = function.take("strict", bool, False), function.raw("parameters")
    function.done()
    if not name or len(name) > 128:
        raise InvalidArgument(f"{path}.function.name takes 1 to 128 characters, got {brief(name)}")
    try:
        return (Tool(name, description) if raw is None else Tool(name, description, dumps(raw).decode())), strict
    except TypeError as error:  # nested past what JSON is written to
        raise InvalidArgument(f"{path}.function.parameters cannot be read: {error}") from None


def _required(choice: Any, names: list[str]) -> tuple[str, ...]:
    if choice in (None, "auto", "none"):
        return ()
    if choice == "required":
        wanted = names
    else:
        fields = Fields(choice, "tool_choice")
        if (kind := fields.required("type", str)) != "function":
            raise InvalidArgument(f"tool_choice.type is {brief(kind)}; allowed: function")
        function = Fields(fields.raw("function"), "tool_choice.function")
        wanted = [function.required("name", str)]
        function.done()
        fields.done()
    if not wanted or not set(wanted) <= set(names):
        raise InvalidArgument(f"tool_choice asks for {brief(wanted)}, and tools has {names}; add it there")
    return tuple(wanted)


def grammar_of_calls(use: ToolUse, form: ToolFormat) -> Grammar | None:
    """What keeps a model to a call, where one is required, and to the schemas of the tools that are strict; else None."""
    if not use.required and not use.strict:
        return None
    tools = [tool for tool in use.tools if not use.required or tool.name in use.required]
    rules = [f"call: %json {_schema(use, form, tools)}"]
    repeated = f"({_terms(form.between, form)} call)*" if use.many and form.between is not None else ""
    closing = _terms(form.closing, form)
    if use.required:
        return Grammar("lark", "\n".join([f"start: {_terms(form.opening, form)} call {repeated} {closing}", *rules]))
    mark = mark_of(form)
    if not mark:
        bare = f"{_terms(form.opening, form)} call {repeated} {closing}"
        return Grammar("lark", "\n".join([f"start: TEXT | {bare}", *rules, f"TEXT: /{_NO_CALL}/"]))
    rest = form.opening.partition(mark)[2]
    begun = f"{_terms(rest, form)} call {repeated} {closing}"
    rules += [f"TEXT: /{_ANY}/", "ending: TEXT", "start: calls* ending"]
    if any(marker.text == mark for marker in form.markers):
        rules.append(f"calls: TEXT {_terms(mark, form)} {begun}")
    else:
        rules += [f"opened[lazy]: TEXT {json.dumps(mark)}", f"calls: opened {begun}"]
    return Grammar("lark", "\n".join(["%llguidance {}", *rules]))


def _terms(text: str | None, form: ToolFormat) -> str:
    """A text as Lark writes it; special tokens by their ids."""
    return " ".join(_parts(text or "", form))


def _parts(text: str, form: ToolFormat) -> Iterator[str]:
    found = [(place, marker) for marker in form.markers if (place := text.find(marker.text)) >= 0]
    if not found:
        if text:
            yield json.dumps(text, ensure_ascii=False)
        return
    place, marker = min(found, key=lambda item: item[0])
    yield from _parts(text[:place], form)
    yield f"<[{marker.id}]>"
    yield from _parts(text[place + len(marker.text) :], form)


def _schema(use: ToolUse, form: ToolFormat, tools: list[Tool]) -> str:
    """Of one call of one of the tools."""
    shared: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        exact = bool(use.required) or tool.name in use.strict
        arguments = _hoisted(json.loads(tool.parameters), f"{i}.", shared) if exact else {"type": "object"}
        calls.append(
            {
                "type": "object",
                "properties": {form.name_key: {"const": tool.name}, form.arguments_key: arguments},
                "required": [form.name_key, form.arguments_key],
                "additionalProperties": False,
            }
        )
    whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
    spaces = {"x-guidance": {"whitespace_pattern": "( |\\n[ \\t]{0,16})?"}}
    return json.dumps({**spaces, **whole, **({"$defs": shared} if shared else {})})


def _hoisted(schema: Any, prefix: str, shared: dict[str, Any]) -> Any:
    """A schema with its definitions moved to where references are read from, each under a name of its tool's."""
    if isinstance(schema, list):
        return [_hoisted(item, prefix, shared) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", schema).items():
        if key in ("$defs", "definitions") and isinstance(value, dict):
            for name, item in cast("dict[str, Any]", value).items():
                shared[prefix + name] = _hoisted(item, prefix, shared)
        elif key == "$ref" and isinstance(value, str):
            found[key] = _moved(value, prefix)
        else:
            found[key] = _hoisted(value, prefix, shared)
    return found


def _moved(reference: str, prefix: str) -> str:
    for place in ("#/$defs/", "#/definitions/"):
        if reference.startswith(place):
            return f"#/$defs/{prefix}{reference.removeprefix(place)}"
    raise InvalidArgument(
        f"a tool's parameters refer to {brief(reference)}; references are followed to #/$defs/… and #/definitions/…"
    )
