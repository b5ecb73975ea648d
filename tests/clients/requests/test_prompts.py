"""Every way to write a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import Input, InvalidArgument, Message
from probewire.clients.requests.prompts import to_inputs

HI = Message("user", "hi")


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("hi", (Input(text="hi"),)),
        ([1, 2], (Input(token_ids=(1, 2)),)),
        ((1, 2), (Input(token_ids=(1, 2)),)),
        (np.array([1, 2], dtype=np.int32), (Input(token_ids=(1, 2)),)),
        (HI, (Input(messages=(HI,)),)),
        ({"role": "user", "content": "hi"}, (Input(messages=(HI,)),)),
        ([{"role": "user", "content": "hi"}, HI], (Input(messages=(HI, HI)),)),
        (Input(text="x", name="mine"), (Input(text="x", name="mine"),)),
        ({"a": "x", "b": [1]}, (Input(text="x", name="a"), Input(token_ids=(1,), name="b"))),
        ({"a": Input(text="x", source_only=True)}, (Input(text="x", name="a", source_only=True),)),
        (
            ["x", [1], [HI]],
            (Input(text="x", name="0"), Input(token_ids=(1,), name="1"), Input(messages=(HI,), name="2")),
        ),
        ([np.array([1]), np.array([2])], (Input(token_ids=(1,), name="0"), Input(token_ids=(2,), name="1"))),
        (
            [Input(text="x", name="p"), Input(text="y", name="q")],
            (Input(text="x", name="p"), Input(text="y", name="q")),
        ),
    ],
)
def test_prompts(prompt: Any, inputs: tuple[Input, ...]) -> None:
    assert to_inputs(prompt) == inputs


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3, "cannot use a int as a prompt; allowed: text"),
        (None, "cannot use a NoneType"),
        ([], "'input' is an empty list"),
        ([1, HI], "is a list of Message, int"),
        ([{"role": "user"}], "a chat message has the keys role and content"),
        ([True, False], "cannot use a bool"),
        (np.zeros((2, 2), int), r"1-D array of integers, got int64 of shape \[2, 2\]; for several prompts send a list"),
        (np.array([0.5]), "got float64"),
        ({"a": 3}, "cannot use a int"),
        ({}, None),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, message: str | None) -> None:
    if message is None:
        assert to_inputs(prompt) == ()  # the request itself refuses it: it takes 1 to 64 inputs
        return
    with pytest.raises(InvalidArgument, match=message):
        to_inputs(prompt)
