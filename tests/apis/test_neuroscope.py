"""A NeuroScope client's calls against the real server, their values held against plain gRPC."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from probewire.clients import (
    Client,
    Constant,
    FromInput,
    Generation,
    Hook,
    Input,
    Message,
    Noise,
    Replace,
    Scale,
    Where,
    Zeros,
)
from tests.apis.neuroscope_client import NeuroScopeClient, attention_hooks, circuit_hooks, converted
from tests.apis.serving import Served

MESSAGES = [{"role": "user", "content": "Where is Mary?"}]
OURS = [Message("user", "Where is Mary?")]
CLEAN, CORRUPT = "When Mary and John", "When John and Mary"
SITES = {
    "residual": "resid_post",
    "attention": "attn_out",
    "mlp": "mlp_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "attention_scores": "attn_scores",
    "attention_pattern": "attn_probs",
}
SAMPLED: dict[str, Any] = {"max_tokens": 6, "temperature": 0.8, "top_p": 0.95, "seed": 3}


@pytest.fixture
def neuroscope(served: Served) -> Generator[NeuroScopeClient]:
    client = NeuroScopeClient(served.http)
    yield client
    client.clear_hooks()
    client.close()


@pytest.fixture(scope="module")
def ours(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}") as client:
        yield client


def site_of(hook: dict[str, Any]) -> str:
    if hook["component"] == "embedding":
        return "embed"
    return f"{SITES[hook['component']]}.{hook['layer_name'].rpartition('.')[2]}"


def same(data: list[Any], expected: Any) -> bool:
    """Nested lists of the dialect against our array; JSON has no infinity, so masked scores are null."""
    return np.array_equal(np.array(data, np.float32), np.where(np.isinf(expected), np.nan, expected), equal_nan=True)


def generated(ours: Client, model: str, hooks: list[dict[str, Any]]) -> Generation:
    """The same generation over gRPC."""
    sites = [site_of(hook) for hook in hooks]
    return ours.generate(OURS, capture=sites, model=model, max_new_tokens=6, temperature=0.8, top_p=0.95, seed=3)


def test_health_and_models(neuroscope: NeuroScopeClient) -> None:
    assert neuroscope.health()["status"] == "healthy"
    assert [model["id"] for model in neuroscope.list_models()] == ["torch", "mlx"]


@pytest.mark.parametrize("make_hooks", [circuit_hooks, attention_hooks])
def test_generate_with_activations(neuroscope: NeuroScopeClient, ours: Client, model: str, make_hooks: Any) -> None:
    hooks = make_hooks(range(3))
    answer = neuroscope.generate_with_activations(MESSAGES, hooks, model=model, **SAMPLED)
    expected = generated(ours, model, hooks)
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text}
    assert choice["finish_reason"] == "length"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    ids = [hook.get("hook_id", f"{hook['layer_name']}_{hook['component']}") for hook in hooks]
    assert list(answer["activations"]) == ids
    data = converted(answer["activations"])
    for hook, hook_id in zip(hooks, ids, strict=True):
        [entry] = answer["activations"][hook_id]
        array = expected[site_of(hook)]
        assert (entry["hook_id"], entry["layer_name"]) == (hook_id, hook["layer_name"])
        assert (entry["component"], entry["is_input"]) == (hook["component"], False)
        assert (entry["shape"], entry["dtype"]) == ([1, *array.shape], "float32")
        assert same(data[hook_id][0], array), hook_id


def test_the_values_are_those_of_a_plain_run(neuroscope: NeuroScopeClient, ours: Client, model: str) -> None:
    hooks = circuit_hooks([1])
    answer = neuroscope.generate_with_activations(MESSAGES, hooks, model=model, **SAMPLED)
    made = generated(ours, model, hooks)
    assert answer["choices"][0]["message"]["content"] == made.text
    run = ours.run(list(made.token_ids[:-1]), capture=[site_of(hook) for hook in hooks], model=model)
    for hook in hooks:
        expected = run[site_of(hook)]
        found = np.array(converted(answer["activations"])[hook["hook_id"]][0], np.float32)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), hook


def test_inputs_of_components(neuroscope: NeuroScopeClient, ours: Client, model: str) -> None:
    hook = {"layer_name": "transformer.h.1", "component": "mlp", "capture_input": True, "capture_output": True}
    answer = neuroscope.generate_with_activations(MESSAGES, [hook], model=model, **SAMPLED)
    entries = {entry["is_input"]: entry["data"][0] for entry in answer["activations"]["transformer.h.1_mlp"]}
    expected = ours.generate(
        OURS, capture=["mlp_in.1", "mlp_out.1"], model=model, max_new_tokens=6, temperature=0.8, top_p=0.95, seed=3
    )
    assert same(entries[True], expected["mlp_in.1"])
    assert same(entries[False], expected["mlp_out.1"])


def test_streaming(neuroscope: NeuroScopeClient, ours: Client, model: str) -> None:
    hooks = circuit_hooks([0, 2])
    expected = generated(ours, model, hooks)
    lines = list(neuroscope.stream_with_activations(MESSAGES, hooks, model=model, **SAMPLED))
    assert all(set(line) == {"choices", "activations"} for line in lines)
    assert "".join(line["choices"][0]["delta"].get("content", "") for line in lines) == expected.text
    reasons = [line["choices"][0]["finish_reason"] for line in lines]
    assert reasons == [None] * (len(lines) - 1) + ["length"]
    n_prompt = len(expected.only.prompt_ids)
    for hook in hooks:
        pieces = [data for line in lines for data in converted(line["activations"]).get(hook["hook_id"], [])]
        rows = [len(piece) for piece in pieces]
        assert (sum(rows), rows[-5:]) == (n_prompt + 5, [1] * 5), "each step brings its own rows"
        assert same([row for piece in pieces for row in piece], expected[site_of(hook)])


def test_registered_hooks_serve_the_callers_later_calls(
    served: Served, neuroscope: NeuroScopeClient, ours: Client, model: str
) -> None:
    hooks = circuit_hooks([1])
    ids = [hook["hook_id"] for hook in hooks]
    assert neuroscope.register_hooks(hooks) == ids
    expected = generated(ours, model, hooks)
    answer = neuroscope.generate_with_activations(MESSAGES, model=model, **SAMPLED)
    assert list(answer["activations"]) == ids
    assert same(converted(answer["activations"])["layer_1_residual"][0], expected["resid_post.1"])
    sent = neuroscope.generate_with_activations(MESSAGES, attention_hooks([0])[:1], model=model, **SAMPLED)
    assert list(sent["activations"]) == ["model.layers.0_query"], "a call's own hooks come first"
    stranger = NeuroScopeClient(served.http, "another")
    assert stranger.generate_with_activations(MESSAGES, model=model, **SAMPLED)["activations"] == {}
    stranger.close()
    neuroscope.clear_hooks()
    assert neuroscope.generate_with_activations(MESSAGES, model=model, **SAMPLED)["activations"] == {}


# ---- patching --------------------------------------------------------------------------------------------------------

MEAN = "mean of the baseline"
PATCHES: dict[str, tuple[dict[str, Any], list[Any], Where]] = {
    "zero_ablation": ({"strength": 1.0}, [Replace(Zeros())], Where()),
    "half a zero_ablation": ({"type": "zero_ablation", "strength": 0.5}, [Scale(0.5)], Where()),
    "mean_ablation": ({}, [MEAN], Where()),
    "noise_injection": ({"strength": 2.0}, [Noise(0.2, 5)], Where()),
    "activation_patching": ({}, [Replace(FromInput("baseline"))], Where(phase="prompt")),
    "random_replacement": ({"target_positions": [3]}, [Replace(Zeros()), Noise(1.0, 5)], Where(positions=(3,))),
    "scaled_intervention": ({"strength": 3.0, "target_positions": [-1]}, [Scale(3.0)], Where(positions=(-1,))),
}
"""Type → what else the intervention says, and what it means as our edits (with the call's seed of 5), where."""


@pytest.mark.parametrize("kind", PATCHES)
def test_patching(neuroscope: NeuroScopeClient, ours: Client, model: str, kind: str) -> None:
    said, edits, where = PATCHES[kind]
    intervention = {"layer_name": "transformer.h.1", "component": "mlp", "type": kind, **said}
    reads = [{"layer_name": "transformer.h.2", "component": "residual"}]
    answer = neuroscope.patch(CORRUPT, CLEAN, [intervention], activation_hooks=reads, model=model, max_tokens=6, seed=5)
    if edits == [MEAN]:
        mean = ours.run(CLEAN, capture=["mlp_out.1"], model=model)["mlp_out.1"].mean(axis=0, dtype=np.float32)
        edits = [Replace(Constant(mean))]
    hooks = [Hook("mlp_out.1", edit=edit, where=where, inputs=("prompt",)) for edit in edits]
    inputs = [Input(CORRUPT, name="prompt"), Input(CLEAN, name="baseline")]
    expected = ours.generate(inputs, hooks=hooks, capture=["resid_post.2"], model=model, max_new_tokens=6, seed=5)
    assert answer["choices"][0]["message"]["content"] == expected.inputs["prompt"].text
    assert answer["baseline_choices"][0]["message"]["content"] == expected.inputs["baseline"].text
    assert answer["usage"]["completion_tokens"] == 12
    found = np.array(converted(answer["activations"])["transformer.h.2_residual"][0], np.float32)
    rows = expected.inputs["prompt"]["resid_post.2"]
    if kind == "mean_ablation":  # the server's mean and ours are summed in another order
        assert np.abs(found - rows).max() <= 1e-4 * np.abs(rows).max()
    else:
        assert np.array_equal(found, rows)
    plain = ours.run(CORRUPT, capture=["resid_post.2"], model=model)["resid_post.2"]
    assert np.abs(found[: len(plain)] - plain).max() > 1e-2, "it did something"


def test_several_interventions_at_once(neuroscope: NeuroScopeClient, ours: Client, model: str) -> None:
    interventions = [
        {"layer_name": "transformer.wte", "component": "embedding", "type": "scaled_intervention", "strength": 2.0},
        {"layer_name": "model.layers.2", "component": "attention", "type": "zero_ablation"},
    ]
    answer = neuroscope.patch(CORRUPT, CLEAN, interventions, model=model, max_tokens=4)
    hooks = [Hook("embed", edit=Scale(2.0)), Hook("attn_out.2", edit=Replace(Zeros()))]
    expected = ours.generate(CORRUPT, hooks=hooks, model=model, max_new_tokens=4)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["activations"] == {}


def test_gradient_based_patching_is_refused(neuroscope: NeuroScopeClient, model: str) -> None:
    intervention = {"layer_name": "transformer.h.1", "component": "mlp", "type": "gradient_based", "strength": 1.0}
    with pytest.raises(RuntimeError, match=r"422: .*gradient_based.* needs gradients"):
        neuroscope.patch(CORRUPT, CLEAN, [intervention], model=model)


def test_loading_a_model(served: Served, neuroscope: NeuroScopeClient, ours: Client) -> None:
    try:
        answer = neuroscope.load_model(str(served.folder), "third")
        assert (answer["status"], answer["model_id"], answer["supports_activations"]) == ("loaded", "third", True)
        assert [model["id"] for model in neuroscope.list_models()] == ["torch", "mlx", "third"]
        first, third = (
            neuroscope.generate_with_activations(MESSAGES, circuit_hooks([0]), model=model, **SAMPLED)
            for model in ("torch", "third")
        )
        assert first["activations"] == third["activations"]
    finally:
        ours.unload("third")
    assert [model["id"] for model in neuroscope.list_models()] == ["torch", "mlx"]
