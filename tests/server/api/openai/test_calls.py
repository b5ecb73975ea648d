"""Calls read back from texts, however they are cut."""

from __future__ import annotations

import json

import pytest

from probewire.protos.generation.messages import ToolFormat, ToolMarker
from probewire.server.api.openai.calls import CallReader

TAGGED = ToolFormat("<call>\n", "\n</call>", "name", "arguments", "\n</call>\n<call>\n")
MARKED = ToolFormat("<|calls|>[", "]", "name", "arguments", ", ", (ToolMarker(7, "<|calls|>"),))
BARE = ToolFormat("", "", "name", "parameters", None)
LOOK = '{"name": "look", "arguments": {"where": "Rome <b>"}}'
FIND = '{"name": "find", "arguments": {}}'


def read(form: ToolFormat, pieces: list[str | int], *, many: bool = True) -> tuple[str, list[tuple[str, object]], bool]:
    """Text, calls, and whether all of the text came before the end."""
    reader = CallReader(form, many=many, key="k")
    said = "".join(reader.add(p, "") if isinstance(p, int) else reader.add(0, p) for p in pieces)
    rest, calls = reader.end()
    return said + rest, [(call.name, json.loads(call.arguments)) for call in calls], not rest


@pytest.mark.parametrize("step", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("form", "text", "said", "names"),
    [
        (TAGGED, f"<call>\n{LOOK}\n</call>", "", ["look"]),
        (TAGGED, f"I look.\n<call>\n{LOOK}\n</call>\n<call>\n{FIND}\n</call>", "I look.\n", ["look", "find"]),
        (TAGGED, f"<call>{LOOK}</call>", "", ["look"]),
        (TAGGED, f"<call>\n{LOOK}", "", ["look"]),
        (TAGGED, "a <b> <cal", "a <b> <cal", []),
        (TAGGED, "<call>\n{oh no}\n</call>", "<call>\n{oh no}\n</call>", []),
        (TAGGED, '<call>\n{"name": 3, "arguments": {}}', '<call>\n{"name": 3, "arguments": {}}', []),
        (TAGGED, f"<call>\n{LOOK}\n</call> and so", "and so", ["look"]),
        (TAGGED, LOOK, LOOK, []),
        (BARE, LOOK.replace("arguments", "parameters"), "", ["look"]),
        (BARE, f"Look: {LOOK}", f"Look: {LOOK}", []),
        (BARE, '{"a": 1}', '{"a": 1}', []),
        (BARE, "", "", []),
    ],
)
def test_what_is_no_call_stays_text_to_the_letter(
    form: ToolFormat, text: str, said: str, names: list[str], step: int
) -> None:
    found, calls, _ = read(form, [text[i : i + step] for i in range(0, len(text), step)])
    assert found == said
    assert [name for name, _ in calls] == names
    if "look" in names:
        assert calls[0][1] == {"where": "Rome <b>"}


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_special_token_opens(step: int) -> None:
    text = f'[{LOOK}, {{"name": "find", "arguments": "{{}}", "id": "x"}}]'
    found, calls, _ = read(MARKED, ["Well ", 7, *(text[i : i + step] for i in range(0, len(text), step))])
    assert (found, [name for name, _ in calls]) == ("Well ", ["look", "find"])
    assert read(MARKED, [text])[:2] == (text, [])


def test_text_streams_until_a_call_may_begin() -> None:
    assert read(TAGGED, ["Hello ", "there"])[2]
    assert read(BARE, ["Hello ", "there"])[2]


def test_one_call_where_one_is_wanted_and_ids_of_their_own() -> None:
    text = f"<call>\n{LOOK}\n</call>\n<call>\n{LOOK}\n</call>"
    assert len(read(TAGGED, [text], many=False)[1]) == 1
    reader = CallReader(TAGGED, many=True, key="k")
    reader.add(0, text)
    one, other = reader.end()[1]
    assert one.id != other.id
    assert one.id.isalnum()
    assert len(one.id) == 9, "some templates take no other"
