"""What NeuroScope's routes say that they take, against what they do take."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import FakeOperations
from rest_caller import Caller, caller

from probewire.server.api.neuroscope.docs import (
    MAX_TOKENS,
    TEMPERATURE,
    TOP_P,
    chat_answers,
    chat_schema,
    hooks_schema,
    patch_schema,
)
from probewire.server.api.neuroscope.hooks import COMPONENTS, hooks_of
from probewire.server.api.neuroscope.patch import TYPES

MESSAGES = [{"role": "user", "content": "Hi"}]
HOOK = {"layer_name": "transformer.h.1", "component": "residual"}
GOOD: dict[str, Any] = {
    "messages": MESSAGES,
    "activation_hooks": [HOOK],
    "stream": False,
    "model": "fake/model",
    "max_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 1,
    "stop": ["x"],
    "hooks": [HOOK],
    "prompt": "Hi",
    "baseline_prompt": "Ho",
    "interventions": [{**HOOK, "type": "zero_ablation", "strength": 1.0, "target_positions": "all"}],
}
"""A value of each field that any of the routes has."""
ROUTES = {
    "/v1/chat/completions/with_activations": chat_schema(),
    "/v1/activations/hooks": hooks_schema(),
    "/v1/activations/patch": patch_schema(),
}


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_that_is_named_is_taken(path: str) -> None:
    call: Caller = caller()
    response = call.post(path, {name: GOOD[name] for name in ROUTES[path]["properties"]})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_that_is_required_is_missed(path: str) -> None:
    for missing in ROUTES[path]["required"]:
        body = {name: GOOD[name] for name in ROUTES[path]["properties"] if name != missing}
        assert caller().post(path, body).status_code == 422, missing


@pytest.mark.parametrize("path", ROUTES)
def test_a_field_that_is_not_named_is_refused(path: str) -> None:
    assert ROUTES[path]["additionalProperties"] is False
    body = {name: GOOD[name] for name in ROUTES[path]["properties"]}
    assert caller().post(path, {**body, "top_k": 3}).status_code == 422


def test_defaults_are_those_that_are_used() -> None:
    call = caller()
    call.post("/v1/chat/completions/with_activations", {"messages": MESSAGES})
    operations: FakeOperations = call.operations
    sampling: Any = getattr(operations.requests[0], "sampling", None)
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (MAX_TOKENS, TEMPERATURE, TOP_P)
    properties = chat_schema()["properties"]
    assert [properties[name]["default"] for name in ("max_tokens", "temperature", "top_p")] == [
        MAX_TOKENS,
        TEMPERATURE,
        TOP_P,
    ]
    patch = patch_schema()["properties"]
    assert [patch[name]["default"] for name in ("temperature", "top_p")] == [0.0, 1.0], "patches compare, so are greedy"


def test_a_hooks_fields_and_defaults_are_those_of_the_dialect() -> None:
    hook = hooks_schema()["properties"]["hooks"]["items"]
    assert hook["required"] == ["layer_name", "component"]
    assert hook["properties"]["component"]["enum"] == list(COMPONENTS)
    [bare] = hooks_of([HOOK], "hooks")
    assert hook["properties"]["capture_input"]["default"] is bare.capture_input
    assert hook["properties"]["capture_output"]["default"] is bare.capture_output


def test_every_type_of_intervention_is_named() -> None:
    intervention = patch_schema()["properties"]["interventions"]["items"]
    assert intervention["properties"]["type"]["enum"] == list(TYPES)
    assert intervention["properties"]["type"]["default"] in TYPES
    assert intervention["required"] == ["layer_name"]


def test_a_chat_is_answered_whole_or_in_lines() -> None:
    assert set(chat_answers()[200]["content"]) == {"application/json", "application/x-ndjson"}
