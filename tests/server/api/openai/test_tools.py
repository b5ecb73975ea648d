"""OpenAI's fields of tools, and the grammars that they make."""

from __future__ import annotations

import json
from typing import Any

import pytest

from probewire.protos.errors import InvalidArgument
from probewire.protos.generation.messages import Tool, ToolFormat, ToolMarker
from probewire.server.api.openai.request import chat_completion
from probewire.server.api.openai.tools import ToolUse, grammar_of_calls

USER = [{"role": "user", "content": "Hi"}]
LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": LOOK}, {"type": "function", "function": {"name": "wait", "strict": True}}]
MARKED = ToolFormat("<|calls|>[", "]", "name", "arguments", ", ", (ToolMarker(7, "<|calls|>"),))


def use(**fields: Any) -> ToolUse | None:
    return chat_completion({"messages": USER, "tools": TOOLS, **fields}).tool_use


def test_tools_are_taken_over() -> None:
    made = chat_completion({"messages": USER, "tools": TOOLS})
    tools = (Tool("look", "Looks.", '{"type":"object"}'), Tool("wait"))
    assert made.request.inputs[0].tools == tools
    assert made.tool_use == ToolUse(tools, (), frozenset({"wait"}), many=True)
    assert use(parallel_tool_calls=False, tool_choice="required") == ToolUse(
        tools, ("look", "wait"), frozenset({"wait"}), many=False
    )
    named = use(tool_choice={"type": "function", "function": {"name": "look"}})
    assert named is not None
    assert named.required == ("look",)


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}])
def test_without_tools_the_model_is_told_of_none(fields: dict[str, Any]) -> None:
    made = chat_completion({"messages": USER, "tools": TOOLS, **fields})
    assert (made.tool_use, made.request.inputs[0].tools) == (None, ())


def test_definitions_of_two_tools_do_not_meet() -> None:
    def tool(name: str, place: Any) -> Tool:
        parameters = {"type": "object", "properties": {"a": {"$ref": "#/definitions/p"}}, "definitions": {"p": place}}
        return Tool(name, "", json.dumps(parameters))

    both = (tool("x", {"type": "integer"}), tool("y", {"enum": ["$ref"], "items": {"$ref": "#/definitions/p"}}))
    grammar = grammar_of_calls(ToolUse(both, ("x", "y"), many=False), MARKED)
    assert grammar is not None
    start, call = grammar.text.splitlines()
    assert start.split() == ["start:", "<[7]>", '"["', "call", '"]"']
    schema = json.loads(call.removeprefix("call: %json "))
    assert schema["$defs"] == {
        "0.p": {"type": "integer"},
        "1.p": {"enum": ["$ref"], "items": {"$ref": "#/$defs/1.p"}},
    }
    assert [one["properties"]["arguments"]["properties"]["a"]["$ref"] for one in schema["anyOf"]] == [
        "#/$defs/0.p",
        "#/$defs/1.p",
    ]
    odd = Tool("z", "", '{"type": "object", "properties": {"a": {"$ref": "#"}}}')
    with pytest.raises(InvalidArgument, match="a tool's parameters refer to '#'"):
        grammar_of_calls(ToolUse((odd,), ("z",)), MARKED)


def test_where_nothing_is_required_and_nothing_strict_there_is_no_grammar() -> None:
    assert grammar_of_calls(ToolUse((Tool("x"),)), MARKED) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "web"}]}, "tools[0].type is 'web'; allowed: function"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools need distinct names"),
        ({"tools": {}}, "tools must be a list"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]}, "must be a JSON object"),
        ({"tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice asks for ['fly']"),
        ({"tool_choice": "must"}, "tool_choice must be an object"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice asks for []"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "leave out one"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id is missing",
        ),
        ({"tools": TOOLS * 65}, "at most 128"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        chat_completion({"messages": USER, "tools": TOOLS, **fields})
    assert message in caught.value.message
