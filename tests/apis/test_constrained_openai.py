"""What agents send to OpenAI's face, with hooks on: schemas, penalties, biases, a turn that goes on."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import openai
import pytest

from probewire.clients import Client, Grammar, steer
from probewire.protos.wire.codec import to_json
from tests.apis.serving import Served

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}},
    "required": ["sure", "kind"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
STEER = steer("resid_post.1", [0.5] * 64, alpha=2.0)


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ours(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}") as client:
        yield client


def test_a_schema_is_kept_to_with_hooks_on(client: openai.OpenAI, ours: Client, model: str) -> None:
    hooks = {"probewire": {"hooks": [to_json(STEER)]}}
    shared: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 200, "temperature": 1.0}
    texts: list[str] = []
    for seed in range(4):
        answer = client.chat.completions.create(**shared, seed=seed, response_format=FORMAT, extra_body=hooks)
        [choice] = answer.choices
        assert choice.finish_reason == "stop"
        found = json.loads(choice.message.content or "")
        assert set(found) == {"sure", "kind"}
        assert found["sure"] in (True, False)
        assert found["kind"] in ("a", "b")
        texts.append(choice.message.content or "")
        own = ours.generate(
            MESSAGES, hooks=STEER, model=model, max_new_tokens=200, temperature=1.0, seed=seed, grammar=SCHEMA
        )
        assert own.text == choice.message.content
        with client.chat.completions.create(
            **shared, seed=seed, response_format=FORMAT, extra_body=hooks, stream=True
        ) as chunks:
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    assert len(set(texts)) > 1


def test_both_backends_write_the_same(ours: Client) -> None:
    grammar = Grammar("regex", "[a-z]{5,60}")
    texts = {
        ours.generate(
            "Hi", model=name, max_new_tokens=30, temperature=0.8, seed=3, grammar=grammar, repetition_penalty=1.3
        ).text
        for name in ("torch", "mlx")
    }
    assert len(texts) == 1


def test_any_json_object(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=40, temperature=1.0, seed=1, response_format={"type": "json_object"}
    )
    assert (answer.choices[0].message.content or "").lstrip().startswith("{")


def test_a_bias_decides(client: openai.OpenAI, ours: Client, model: str) -> None:
    [token] = ours.tokenize("Q", model=model, add_special_tokens=False).token_ids
    answer = client.completions.create(
        model=model, prompt="Hi", max_tokens=5, temperature=0, logit_bias={str(token): 100}, logprobs=0
    )
    assert answer.choices[0].text == "QQQQQ"
    told = answer.choices[0].logprobs
    assert told is not None
    assert all(p is not None and p < -0.5 for p in told.token_logprobs or []), "log-probabilities are the model's own"


def test_a_presence_penalty_ends_a_repetition(client: openai.OpenAI, ours: Client, model: str) -> None:
    one, other = (ours.tokenize(c, model=model, add_special_tokens=False).token_ids[0] for c in "QZ")
    answer = client.completions.create(
        model=model,
        prompt="QZ",
        max_tokens=4,
        temperature=0,
        logit_bias={str(one): 99, str(other): 98.5},
        presence_penalty=2,
        frequency_penalty=0,
    )
    logits = ours.run("QZ", capture="logits", model=model)["logits"]
    assert abs(float(logits[-1, one] - logits[-1, other])) < 20
    assert set(answer.choices[0].text) <= {"Q", "Z"}


def test_the_last_message_goes_on(client: openai.OpenAI, ours: Client, model: str) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Well, I"}]
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(
        model=model, messages=begun, max_tokens=6, temperature=0, extra_body={**goes_on, "probewire": {}}
    )
    assert answer.model_extra is not None
    sent = answer.model_extra["probewire"]["started"]["inputs"][0]["token_ids"]
    turn = ours.tokenize([*MESSAGES], model=model)
    assert ours.tokenize(sent, model=model).text == turn.text + "Well, I"
    assert answer.choices[0].message.content == ours.generate(sent, model=model, max_new_tokens=6).text
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(openai.UnprocessableEntityError, match="one of them is true"):
        client.chat.completions.create(model=model, messages=begun, extra_body=both)


def test_a_model_whose_template_reads_no_tools_says_so(client: openai.OpenAI, model: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": "look"}}]
    options: list[dict[str, Any]] = [{}, {"max_tokens": 2}, {"tool_choice": "required"}]
    for fields in options:
        with pytest.raises(openai.UnprocessableEntityError, match="this model's chat template reads no tools"):
            client.chat.completions.create(model=model, messages=MESSAGES, tools=tools, **fields)
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, tools=tools, tool_choice="none", max_tokens=1
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "xml"}}, "allowed: text, json_object, json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema must be an object"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "unknown fields"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
            "cannot be followed: Invalid type: thing",
        ),
        ({"logit_bias": {"x": 1}}, "keys are token ids"),
        ({"logit_bias": {"100000": 1}}, "the vocabulary is 0"),
        ({"logit_bias": {"3": 101}}, "logit_bias of token 3 must be a number in -100.0 … 100.0"),
        ({"logit_bias": [3]}, "logit_bias must be an object"),
        ({"presence_penalty": 3}, "presence_penalty must be a number in -2.0 … 2.0"),
    ],
)
def test_what_cannot_be_is_refused(client: openai.OpenAI, model: str, fields: Any, message: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match=message):
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2, extra_body=fields)
