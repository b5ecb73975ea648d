"""OpenAI's requests as ours, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from probewire.protos.errors import InvalidArgument
from probewire.protos.generation.sampling import Grammar, Sampling, TokenBias
from probewire.protos.model import MAX_INPUTS, ONLY_TEXT, Input, Message
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.api.http.fields import Fields
from probewire.server.api.openai.request import (
    chat_completion,
    messages_of,
    sampling_of,
    text_completion,
    untouched,
)

USER = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> Any:
    return chat_completion({"messages": USER, **fields})


def text(prompt: object = "Hi", **fields: Any) -> Any:
    return text_completion({"prompt": prompt, **fields})


def refused(read: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        read()
    return caught.value.message


def test_a_bare_chat_has_openais_defaults() -> None:
    made = chat()
    assert made.request.inputs == (Input(messages=(Message("user", "Hi"),)),)
    assert made.request.sampling == Sampling(temperature=1.0)
    assert (made.request.model, made.request.plan, made.request.session) == ("", Plan(), "")
    assert (made.chat, made.n, made.stream, made.include_usage, made.logprobs) == (True, 1, False, False, False)
    assert made.style is None
    assert made.capped is False


def test_a_bare_completion_is_short_as_openais_are() -> None:
    made = text()
    assert made.request.inputs == (Input("Hi"),)
    assert made.request.sampling == Sampling(max_new_tokens=16, temperature=1.0)
    assert (made.chat, made.capped) == (False, True)


def test_sampling_is_taken_over() -> None:
    made = chat(max_tokens=5, temperature=0, top_p=0.5, seed=7, stop=["a", "b"], model="m", stream=True)
    assert made.request.sampling == Sampling(5, 0.0, 0.5, seed=7, stop=("a", "b"))
    assert (made.request.model, made.stream, made.capped) == ("m", True, True)
    assert chat(stop="x").request.sampling.stop == ("x",)


def test_what_changes_the_logits_is_taken_over() -> None:
    schema = {"name": "x", "description": "y", "strict": True, "schema": {"type": "object", "b": 1, "a": 2}}
    made = text(
        presence_penalty=0.5,
        frequency_penalty=-1,
        repetition_penalty=1.2,
        logit_bias={"5": 1, "3": -100},
        response_format={"type": "json_schema", "json_schema": schema},
    )
    assert made.request.sampling == Sampling(
        max_new_tokens=16,
        temperature=1.0,
        presence_penalty=0.5,
        frequency_penalty=-1.0,
        repetition_penalty=1.2,
        logit_bias=(TokenBias(5, 1), TokenBias(3, -100)),
        grammar=Grammar("json_schema", '{"type":"object","b":1,"a":2}'),
    )
    assert text(response_format={"type": "text"}, logit_bias={}).request.sampling.adjusts is False
    assert text(response_format={"type": "json_object"}).request.sampling.grammar == Grammar(
        "json_schema", '{"type": "object"}'
    )


def test_the_last_message_goes_on_where_one_says_so() -> None:
    assert chat(continue_final_message=True).request.inputs[0].continue_final is True
    assert chat(continue_final_message=True, add_generation_prompt=False).request.inputs[0].continue_final is True
    assert chat(add_generation_prompt=True).request.inputs[0].continue_final is False
    assert "true, got false for both" in refused(lambda: chat(add_generation_prompt=False))


def test_the_two_names_of_the_bound_are_one() -> None:
    for fields in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 3, "max_completion_tokens": 3}):
        assert chat(**fields).request.sampling.max_new_tokens == 3
    message = refused(lambda: chat(max_tokens=3, max_completion_tokens=4))
    assert message == (
        "max_tokens and max_completion_tokens mean the same; give one, got "
        "{'max_completion_tokens': 4, 'max_tokens': 3}"
    )


def test_another_dialects_defaults_and_whether_it_bounded_the_tokens() -> None:
    fields = Fields({"seed": 1})
    assert sampling_of(fields, max_tokens=9, temperature=0.7, top_p=0.9) == (Sampling(9, 0.7, 0.9, seed=1), None)
    assert sampling_of(Fields({})) == (Sampling(temperature=1.0), None)
    fields.done()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
    ],
)
def test_a_chats_logprobs_are_a_switch_and_a_number(fields: dict[str, Any], wanted: int | None) -> None:
    made = chat(**fields)
    assert made.request.sampling.logprobs == wanted
    assert made.logprobs is (wanted is not None)


@pytest.mark.parametrize("fields", [{"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 2}])
def test_top_logprobs_alone_ask_for_nothing_that_is_sent(fields: dict[str, Any]) -> None:
    assert refused(lambda: chat(**fields)) == "top_logprobs needs logprobs: true"


@pytest.mark.parametrize(("given", "wanted"), [(None, None), (0, 0), (5, 5)])
def test_a_completions_logprobs_are_a_number(given: int | None, wanted: int | None) -> None:
    made = text(logprobs=given)
    assert (made.request.sampling.logprobs, made.logprobs) == (wanted, wanted is not None)


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("", [Input("")]),
        ([1, 2], [Input(token_ids=(1, 2))]),
        (["a", "b"], [Input("a", name="0"), Input("b", name="1")]),
        (["a"], [Input("a")]),
        ([[1], [2, 3]], [Input(token_ids=(1,), name="0"), Input(token_ids=(2, 3), name="1")]),
    ],
)
def test_a_prompt_is_text_token_ids_or_a_list_of_either(prompt: object, inputs: list[Input]) -> None:
    assert text(prompt).request.inputs == tuple(inputs)


def test_token_ids_may_be_more_than_prompts() -> None:
    ids = list(range(MAX_INPUTS + 1))
    assert text(ids).request.inputs == (Input(token_ids=tuple(ids)),)
    assert refused(lambda: text([[1]] * (MAX_INPUTS + 1))) == (
        f"prompt has {MAX_INPUTS + 1} prompts; at most {MAX_INPUTS} are allowed"
    )


@pytest.mark.parametrize("prompt", [["a", 1], [1, "a"], [[1], "a"], [[1], []], [[]], [True], [1.0], [None], [["a"]]])
def test_prompts_are_of_one_kind(prompt: object) -> None:
    assert refused(lambda: text(prompt)).startswith("prompt mixes kinds")


@pytest.mark.parametrize(("prompt", "got"), [(None, "None"), ([], r"[]"), (3, "3"), ({}, "{}")])
def test_no_prompt_is_refused(prompt: object, got: str) -> None:
    assert refused(lambda: text(prompt)) == f"prompt must be a string, token ids, or a list of either, got {got}"


def test_choices_of_a_prompt_stand_side_by_side() -> None:
    made = text(["a", "b"], n=2)
    assert [(item.name, item.text) for item in made.request.inputs] == [("0", "a"), ("1", "a"), ("2", "b"), ("3", "b")]
    assert made.n == 2
    assert text(["a", "b"], n=MAX_INPUTS // 2).n == MAX_INPUTS // 2
    for n in (0, -1, MAX_INPUTS // 2 + 1):
        assert refused(lambda n=n: text(["a", "b"], n=n)) == (
            f"n choices of 2 prompts: 1 to {MAX_INPUTS} together, got n = {n}"
        )


def test_parts_of_a_message_are_its_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"text": "b"}]
    fields = Fields({"messages": [{"role": "system", "content": parts}, {"role": "user", "content": ""}]})
    assert messages_of(fields) == (Message("system", "a\nb"), Message("user", ""))
    fields.done()


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Hi", "messages[1] must be an object, got 'Hi'"),
        ({"content": "x"}, "messages[1].role is missing; it has no default"),
        ({"role": "user"}, "messages[1].content must be text, got None"),
        ({"role": "user", "content": {}}, "messages[1].content must be text, got {}"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text is missing; it has no default"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0] must be an object, got 'x'"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
            f"messages[1].content[0].type is 'image_url'; {ONLY_TEXT}",
        ),
        (
            {"role": "user", "content": "x", "tool_calls": [{}]},
            "messages[1].tool_calls are an assistant's, and its role is 'user'",
        ),
        ({"role": "user", "content": "x", "weight": 1}, "messages[1] has unknown fields ['weight']"),
    ],
)
def test_a_message_that_cannot_be_honoured_is_named(message: object, told: str) -> None:
    assert refused(lambda: messages_of(Fields({"messages": [*USER, message]}))).startswith(told)


def test_an_answer_may_be_given_back_as_it_came() -> None:
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "annotations": [], "audio": None}
    assert messages_of(Fields({"messages": [answer]})) == (Message("assistant", "x"),)


def test_the_field_probewire_brings_hooks_a_session_and_a_style() -> None:
    hooks = [{"site": "resid_post.1", "capture": {}}]
    made = chat(probewire={"hooks": hooks, "session": "ses-1", "tensors": "list"})
    assert made.request.plan == Plan((Hook("resid_post.1", capture=Capture()),))
    assert (made.request.session, made.style) == ("ses-1", "list")
    empty = chat(probewire={})
    assert (empty.request.plan, empty.style) == (Plan(), "base64"), "tensors are told where the field is there at all"


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": True, "include_obfuscation": False}])
def test_the_usage_of_a_stream_is_told_where_asked_for(options: dict[str, Any]) -> None:
    assert chat(stream=True, stream_options=options).include_usage is True
    assert chat(stream=True, stream_options={}).include_usage is False


@pytest.mark.parametrize(
    ("name", "nothing", "something"),
    [
        ("n_best", None, None),
        ("best_of", 1, 2),
        ("logit_bias", {}, {"5": 1}),
        ("tools", [], [{}]),
        ("tool_choice", "auto", "required"),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("suffix", "", "end"),
        ("verbosity", "medium", "low"),
        ("prediction", None, {}),
        ("frequency_penalty", 0.0, False),
    ],
)
def test_a_field_is_accepted_where_it_asks_for_nothing(name: str, nothing: object, something: object) -> None:
    fields = Fields({name: nothing} if name != "n_best" else {"user": "me", "metadata": {"a": 1}})
    untouched(fields)
    fields.done()
    if something is not None:
        assert refused(lambda: untouched(Fields({name: something}))).startswith(f"{name} is not supported here")


def test_the_two_dialects_do_not_borrow_each_others_fields() -> None:
    assert "unknown fields ['messages']" in refused(lambda: text(messages=USER))
    assert "unknown fields ['prompt']" in refused(lambda: chat(prompt="x"))
