"""NeuroScope's dialect, as that project's clients speak it, over pretended operations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from fake_model import N_LAYERS, fake_info, value
from neuroscope_caller import CHAT, HOOKS, MESSAGES, N_PROMPT, RESIDUAL, Client, message_of

from probewire.protos.model import GenerateRequest, RunRequest
from probewire.protos.sites import Site
from probewire.protos.spec import (
    MAX_HOOKS,
)
from probewire.server.api.neuroscope.hooks import COMPONENTS, MAX_CALLERS, Registry


@pytest.fixture
def client() -> Client:
    return Client()


# ---- with_activations ------------------------------------------------------------------------------------------------


def test_a_chat_with_activations(client: Client) -> None:
    answer = client.chat({"layer_name": "transformer.h.1", "component": "residual", "hook_id": "mine"})
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "abc"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": N_PROMPT, "completion_tokens": 3, "total_tokens": N_PROMPT + 3}
    (entry,) = answer["activations"]["mine"]
    positions = list(range(N_PROMPT + 2))  # the last sampled token has no row
    assert {key: entry[key] for key in entry if key != "data"} == {
        "hook_id": "mine",
        "layer_name": "transformer.h.1",
        "component": "residual",
        "shape": [1, len(positions), 4],
        "dtype": "float32",
        "is_input": False,
        "positions": positions,
    }
    np.testing.assert_array_equal(entry["data"][0], value(Site.parse("resid_post.1"), positions))


def test_the_dialects_defaults(client: Client) -> None:
    assert client("POST", CHAT, {"messages": MESSAGES, "stop": []}).status_code == 200
    (request,) = client.operations.requests
    assert isinstance(request, GenerateRequest)
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (100, 0.7, 0.9)
    assert client.chat({"layer_name": "model.layers.0", "component": "mlp"})["activations"].keys() == {
        "model.layers.0_mlp"
    }


@pytest.mark.parametrize(
    ("component", "layer_name", "output", "given"),
    [
        ("residual", "transformer.h.1", "resid_post.1", "resid_pre.1"),
        ("residual", "model.layers.1", "resid_post.1", "resid_pre.1"),
        ("attention", "transformer.h.1", "attn_out.1", "attn_in.1"),
        ("attention", "model.layers.1.self_attn", "attn_out.1", "attn_in.1"),
        ("mlp", "transformer.h.1", "mlp_out.1", "mlp_in.1"),
        ("mlp", "model.layers.1.mlp", "mlp_out.1", "mlp_in.1"),
        ("layernorm", "transformer.h.1", "attn_in.1", "resid_pre.1"),
        ("query", "transformer.h.1", "q.1", "attn_in.1"),
        ("key", "transformer.h.1.attn", "k.1", "attn_in.1"),
        ("value", "transformer.h.1", "v.1", "attn_in.1"),
        ("attention_pattern", "transformer.h.1", "attn_probs.1", None),
        ("embedding", "transformer.wte", "embed", None),
        ("embedding", "model.embed_tokens", "embed", None),
    ],
)
def test_names_of_places(client: Client, component: str, layer_name: str, output: str, given: str | None) -> None:
    hook = {"layer_name": layer_name, "component": component, "capture_input": given is not None}
    answer = client.chat(hook)
    expected = [given, output] if given else [output]
    assert [hook.site for hook in client.plan()] == expected
    entries = answer["activations"][f"{layer_name}_{component}"]
    assert [entry["is_input"] for entry in entries] == [site == given for site in expected]
    for entry in entries:
        assert np.shape(entry["data"]) == tuple(entry["shape"])
        assert entry["shape"][0] == 1


def test_experts_are_named_on_models_that_have_them(client: Client) -> None:
    assert COMPONENTS["moe"] == ("mlp_out", "mlp_in")
    assert COMPONENTS["expert"] == ("expert_weights", "mlp_in")
    body = {"messages": MESSAGES, "activation_hooks": [{"layer_name": "transformer.h.0", "component": "moe"}]}
    assert "has no experts; use mlp" in message_of(client("POST", CHAT, body))


def test_a_stream_of_json_lines(client: Client) -> None:
    body = {
        "messages": MESSAGES,
        "activation_hooks": [{"layer_name": "transformer.h.1", "component": "residual"}],
        "max_tokens": 2,
        "stream": True,
    }
    response = client("POST", CHAT, body)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["choices"][0]["delta"].get("content") for line in lines] == ["a", "b"]
    assert [line["choices"][0]["finish_reason"] for line in lines] == [None, "length"]
    entries = [line["activations"]["transformer.h.1_residual"] for line in lines]
    assert [entry["shape"] for (entry,) in entries] == [[1, N_PROMPT, 4], [1, 1, 4]]


def test_an_error_within_a_stream_is_its_last_line(client: Client) -> None:
    messages = [{"role": "user", "content": "raise:UNAVAILABLE@1"}]
    response = client("POST", CHAT, {"messages": messages, "stream": True})
    first, last = (json.loads(line) for line in response.text.splitlines())
    assert first["choices"][0]["delta"] == {"content": "a"}
    assert last["error"]["code"] == "UNAVAILABLE"
    assert message_of(client("POST", CHAT, {"messages": messages}), 503)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"layer_name": "transformer.h.99", "component": "residual"}, f"has layers 0 … {N_LAYERS - 1}"),
        ({"layer_name": "transformer.h.1", "component": "attention_scores"}, "reached in runs only"),
        ({"layer_name": "transformer.h.1", "component": "embedding"}, "the embedding is layer_name transformer.wte"),
        ({"layer_name": "transformer.wte", "component": "residual"}, "the embedding is layer_name transformer.wte"),
        ({"layer_name": "h.1", "component": "residual"}, "layer_name 'h.1'; allowed: transformer.h.N"),
        ({"layer_name": "transformer.h.-1", "component": "residual"}, "layer_name 'transformer.h.-1'"),
        ({"layer_name": "model.layers.1.mlp", "component": "query"}, "mlp holds expert, mlp, moe"),
        ({"layer_name": "transformer.h.1", "component": "neuron"}, "component 'neuron'; allowed: residual"),
        ({"layer_name": "transformer.h.1"}, "activation_hooks[0].component is missing"),
        ({"component": "mlp"}, "activation_hooks[0].layer_name is missing"),
        (
            {"layer_name": "transformer.h.1", "component": "mlp", "capture_output": False},
            "captures neither input nor output",
        ),
        (
            {"layer_name": "transformer.h.1", "component": "attention_pattern", "capture_input": True},
            "its input is not a tensor",
        ),
        ({"layer_name": "transformer.h.1", "component": "mlp", "layer": 1}, "unknown fields ['layer']"),
        ({"layer_name": 1, "component": "mlp"}, "layer_name must be a string"),
    ],
)
def test_what_the_model_cannot_serve_is_refused_with_the_reason(
    client: Client, hook: dict[str, Any], message: str
) -> None:
    response = client("POST", CHAT, {"messages": MESSAGES, "activation_hooks": [hook]})
    assert message in message_of(response)
    assert client.operations.requests == []


def test_two_hooks_under_one_id_are_refused_and_the_same_twice_is_one(client: Client) -> None:
    a = {"layer_name": "transformer.h.1", "component": "mlp", "hook_id": "x"}
    body = {"messages": MESSAGES, "activation_hooks": [a, {**a, "component": "residual"}]}
    assert "hook_id 'x'" in message_of(client("POST", CHAT, body))
    client.chat(a, a)
    assert len(client.plan()) == 1


def test_what_cannot_be_honoured_is_refused(client: Client) -> None:
    body = {"messages": MESSAGES, "max_tokens": 1}
    assert "n is not supported" in message_of(client("POST", CHAT, {**body, "n": 2}))
    assert "['capture_attention']" in message_of(client("POST", CHAT, {**body, "capture_attention": True}))
    assert "tools is not" in message_of(client("POST", CHAT, {**body, "tools": [{}]}))


# ---- registered hooks ------------------------------------------------------------------------------------------------

MLP = {"layer_name": "transformer.h.0", "component": "mlp", "hook_id": "m"}


def test_registered_hooks_serve_later_calls_that_send_none(client: Client) -> None:
    answer = client("POST", HOOKS, {"hooks": [RESIDUAL, MLP]}).json()
    assert answer == {"status": "hooks_registered", "registered_hooks": ["r", "m"]}
    assert set(client.chat()["activations"]) == {"r", "m"}
    own = {"layer_name": "transformer.h.2", "component": "mlp", "hook_id": "own"}
    assert set(client.chat(own)["activations"]) == {"own"}
    client("POST", HOOKS, {"hooks": [{**RESIDUAL, "layer_name": "transformer.h.2"}]})
    assert client.chat()["activations"]["r"][0]["layer_name"] == "transformer.h.2"
    assert client("DELETE", HOOKS).json() == {"status": "hooks_cleared"}
    assert client.chat()["activations"] == {}


def test_hooks_belong_to_their_caller(client: Client) -> None:
    client("POST", HOOKS, {"hooks": [RESIDUAL]}, who="ann")
    body = {"messages": MESSAGES, "max_tokens": 1}
    for who, address, expected in [
        ("ann", "1.1.1.1", {"r"}),
        ("bob", "1.1.1.1", set[str]()),
        ("", "1.1.1.1", set[str]()),
        ("ann", "2.2.2.2", set[str]()),
    ]:
        answer = client("POST", CHAT, body, who=who, address=address).json()
        assert set(answer["activations"]) == expected
    client("DELETE", HOOKS, who="bob")
    assert set(client("POST", CHAT, body, who="ann").json()["activations"]) == {"r"}


def test_hooks_may_belong_to_one_model(client: Client) -> None:
    client.operations.loaded["other"] = fake_info("other")
    client("POST", HOOKS, {"hooks": [RESIDUAL], "model": "other"})
    client("POST", HOOKS, {"hooks": [MLP]})
    assert set(client.chat(model="other")["activations"]) == {"r", "m"}
    assert set(client.chat(model="fake/model")["activations"]) == {"m"}
    client("DELETE", f"{HOOKS}?model=other")
    assert set(client.chat(model="other")["activations"]) == {"m"}


def test_hooks_that_cannot_be_served_are_not_registered(client: Client) -> None:
    far = {"layer_name": "transformer.h.99", "component": "mlp"}
    assert "has layers" in message_of(client("POST", HOOKS, {"hooks": [far]}))
    assert "hooks is empty" in message_of(client("POST", HOOKS, {"hooks": []}))
    assert message_of(client("POST", HOOKS, {"hooks": [MLP], "model": "nobody"}), 404)
    assert "x-client-id" in message_of(client("POST", HOOKS, {"hooks": [MLP]}, who="x" * 200))
    client.operations.loaded.clear()
    assert client("POST", HOOKS, {"hooks": [far]}).status_code == 200  # checked when it is used


def test_what_callers_register_is_bounded(client: Client) -> None:
    many = [{**MLP, "hook_id": str(i)} for i in range(MAX_HOOKS + 1)]
    assert "DELETE" in message_of(client("POST", HOOKS, {"hooks": many}), 429)
    assert client.chat()["activations"] == {}
    registry = Registry()
    for i in range(MAX_CALLERS):
        registry.add(str(i), "", ())
    with pytest.raises(Exception, match="send activation_hooks with the call"):
        registry.add("one more", "", ())
    registry.clear("0", "")
    registry.add("one more", "", ())


# ---- base:variant ------------------------------------------------------------------------------------------------------


def test_a_model_may_be_named_with_variants(client: Client) -> None:
    named = "fake/model:formal+ada/lyon"
    client.chat(RESIDUAL, model=named)
    client.patch({"layer_name": "transformer.h.1", "component": "mlp", "type": "mean_ablation"}, model=named)
    chat, means, patched = client.operations.requests
    for request in (chat, means, patched):
        assert isinstance(request, GenerateRequest | RunRequest)
        assert request.model == "fake/model"
        assert [use.name for use in request.variants] == ["formal", "ada/lyon"], "the baseline runs them too"
    client.chat(RESIDUAL, model="fake/model")
    last: Any = client.operations.requests[-1]
    assert last.variants == ()


def test_hooks_registered_for_a_base_serve_its_variants(client: Client) -> None:
    assert client("POST", HOOKS, {"hooks": [RESIDUAL], "model": "fake/model:formal"}).status_code == 200
    assert client.chat(model="fake/model:other")["activations"].keys() == {"r"}
    assert client("DELETE", HOOKS, {"model": "fake/model:formal"}).status_code == 200
    assert client.chat(model="fake/model")["activations"] == {}


def test_a_base_that_is_not_loaded_is_told(client: Client) -> None:
    response = client("POST", CHAT, {"messages": MESSAGES, "model": "other:formal"})
    assert "no model 'other:formal' is loaded; loaded: fake/model" in message_of(response, 404)
