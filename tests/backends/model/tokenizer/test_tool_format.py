"""How calls are written, learnt from templates of each kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.errors import InvalidArgument
from probewire.protos.generation.messages import Message, Tool, ToolCall, ToolFormat, ToolMarker
from probewire.protos.model import Input
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder
from tests.tool_templates import BARE, MARKED, PLAIN, TAGGED, THINKING, UNLIKE

CALL = ToolCall("abc123xyz", "look", '{"where": "Rome"}')
TOOLS = (Tool("look", "Looks.", '{"type": "object", "properties": {"where": {"type": "string"}}}'),)
ASKED = Message("user", "Where?")


def made(folder: Path, template: str) -> Tokenizer:
    where = tokenizer_folder(
        "byte_level", folder, eos_token="<|im_end|>", chat_template=template, unk_token="<|calls|>"
    )
    file = where / "tokenizer.json"
    file.write_text(file.read_text().replace("<unk>", "<|calls|>"))
    return Tokenizer(where, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TAGGED, ToolFormat("<call>\n", "\n</call>", "name", "arguments", "\n</call>\n<call>\n")),
        (THINKING, ToolFormat("<call>\n", "\n</call>", "name", "arguments", "\n</call>\n<call>\n")),
        (MARKED, ToolFormat("<|calls|>[", "]", "name", "arguments", ", ", (ToolMarker(0, "<|calls|>"),))),
        (BARE, ToolFormat("", "", "name", "parameters", None)),
        (PLAIN, None),
        (UNLIKE, None),
    ],
    ids=["tagged", "thinking", "marked", "bare", "plain", "unlike"],
)
def test_it_is_what_stands_around_the_calls(tmp_path: Path, template: str, expected: ToolFormat | None) -> None:
    tokenizer = made(tmp_path, template)
    assert tokenizer.tool_format == expected
    assert tokenizer.named().tool_format == expected


def test_a_turn_with_calls_is_what_the_template_writes(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, TAGGED)
    turns = (ASKED, Message("assistant", "", (CALL,)), Message("tool", "Here.", tool_call_id=CALL.id, name="look"))
    told = tokenizer.decode(tokenizer.encode(Input(messages=turns, tools=TOOLS)))
    function = {"name": "look", "description": "Looks.", "parameters": json.loads(TOOLS[0].parameters)}
    assert told == (
        f"<|im_start|>system\nYou may call:\n{json.dumps(function)}<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        '<|im_start|>assistant\n<call>\n{"name": "look", "arguments": {"where": "Rome"}}\n</call><|im_end|>\n'
        "<|im_start|>tool\nHere.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("template", [PLAIN, UNLIKE])
def test_a_model_that_would_not_be_told_is_refused(tmp_path: Path, template: str) -> None:
    tokenizer = made(tmp_path, template)
    for item in (Input(messages=(ASKED,), tools=TOOLS), Input(messages=(ASKED, Message("assistant", "", (CALL,))))):
        with pytest.raises(InvalidArgument, match="reads no tools, or writes calls of them in another form"):
            tokenizer.encode(item)


def test_tools_go_with_messages_and_are_json() -> None:
    with pytest.raises(InvalidArgument, match="tools are told to the model by its chat template"):
        Input(text="x", tools=TOOLS)
    with pytest.raises(InvalidArgument, match="the parameters of tool 'x' must be a JSON object"):
        Tool("x", parameters="[]")
    with pytest.raises(InvalidArgument, match="the arguments of the call of 'x' must be a JSON object"):
        ToolCall("1", "x", "{")
