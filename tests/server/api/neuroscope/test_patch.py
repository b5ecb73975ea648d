"""Patching in NeuroScope's dialect: interventions become edits, and what cannot be honoured is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_model import value
from neuroscope_caller import PATCH, RESIDUAL, Client, message_of

from probewire.protos.model import GenerateRequest, RunRequest
from probewire.protos.sites import Site
from probewire.protos.spec import (
    Add,
    Capture,
    Constant,
    FromInput,
    Hook,
    Mean,
    Noise,
    Replace,
    Scale,
    Where,
    Zeros,
)
from probewire.protos.tensors import Tensor


@pytest.fixture
def client() -> Client:
    return Client()


AT = {"layer_name": "transformer.h.1", "component": "mlp"}


def test_a_patch_gives_both_texts(client: Client) -> None:
    answer = client.patch({**AT, "type": "zero_ablation"}, activation_hooks=[RESIDUAL])
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["baseline_choices"][0]["message"]["content"] == "bc"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}
    (entry,) = answer["activations"]["r"]
    assert entry["shape"] == [1, 4, 4]
    (request,) = client.operations.requests
    assert isinstance(request, GenerateRequest)
    assert [(item.name, item.text) for item in request.inputs] == [("prompt", "abc"), ("baseline", "xyz")]
    assert request.plan.hooks == (
        Hook("mlp_out.1", edit=Replace(Zeros()), inputs=("prompt",)),
        Hook("resid_post.1", capture=Capture(dtype="float32"), inputs=("prompt",)),
    )
    assert request.sampling.temperature == 0


@pytest.mark.parametrize(
    ("intervention", "edits"),
    [
        ({}, [Replace(Zeros())]),
        ({"type": "zero_ablation", "strength": 0.25}, [Scale(0.75)]),
        ({"type": "noise_injection"}, [Noise(0.1, 7)]),
        ({"type": "noise_injection", "strength": 20}, [Noise(2.0, 7)]),
        ({"type": "random_replacement"}, [Replace(Zeros()), Noise(1.0, 7)]),
        ({"type": "random_replacement", "strength": 0.5}, [Scale(0.5), Noise(0.5, 7)]),
        ({"type": "scaled_intervention", "strength": -2}, [Scale(-2.0)]),
    ],
)
def test_interventions_as_edits(client: Client, intervention: dict[str, Any], edits: list[Any]) -> None:
    client.patch({**AT, **intervention}, seed=7)
    assert client.plan() == tuple(Hook("mlp_out.1", edit=edit, inputs=("prompt",)) for edit in edits)


def test_the_component_of_an_intervention_defaults_to_the_residual_stream(client: Client) -> None:
    client.patch({"layer_name": "model.layers.2", "target_positions": "all"})
    assert client.plan() == (Hook("resid_post.2", edit=Replace(Zeros()), inputs=("prompt",)),)


def test_patching_takes_the_baselines_rows(client: Client) -> None:
    client.patch(
        {**AT, "type": "activation_patching", "target_positions": [0, -1]}, {**AT, "type": "activation_patching"}
    )
    edit = Replace(FromInput("baseline"))
    assert client.plan() == (
        Hook("mlp_out.1", edit=edit, where=Where(positions=(0, -1)), inputs=("prompt",)),
        Hook("mlp_out.1", edit=edit, where=Where(phase="prompt"), inputs=("prompt",)),
    )


@pytest.mark.parametrize(("component", "site"), [("mlp", "mlp_out.1"), ("query", "q.1")])
def test_the_mean_comes_from_a_run_over_the_baseline(client: Client, component: str, site: str) -> None:
    client.patch({**AT, "component": component, "type": "mean_ablation", "target_positions": [1]})
    run, generate = client.operations.requests
    assert isinstance(run, RunRequest)
    assert [(item.text, item.name) for item in run.inputs] == [("xyz", "baseline")]
    assert run.plan.hooks == (Hook(site, capture=Capture(dtype="float32", reduce=Mean())),)
    mean = value(Site.parse(site), [0, 1, 2]).mean(0)
    assert isinstance(generate, GenerateRequest)
    assert generate.plan.hooks == (
        Hook(site, edit=Replace(Constant(Tensor.of(mean))), where=Where(positions=(1,)), inputs=("prompt",)),
    )


def test_half_a_mean_ablation_is_a_blend(client: Client) -> None:
    client.patch({**AT, "type": "mean_ablation", "strength": 0.5})
    scale, add = (hook.edit for hook in client.plan())
    assert scale == Scale(0.5)
    assert isinstance(add, Add)
    assert add.alpha == 0.5
    np.testing.assert_array_equal(add.vector.numpy(), value(Site.parse("mlp_out.1"), [0, 1, 2]).mean(0))


def test_without_a_baseline_the_prompt_is_its_own(client: Client) -> None:
    client.patch({**AT, "type": "zero_ablation"}, baseline_prompt=None)
    (request,) = client.operations.requests
    assert isinstance(request, GenerateRequest)
    assert [item.text for item in request.inputs] == ["abc", "abc"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"type": "gradient_based"}, "'gradient_based' needs gradients"),
        ({"type": "teleport"}, "'teleport'; allowed: zero_ablation"),
        ({"strength": 2}, "strength 2; allowed for zero_ablation: 0 … 1"),
        ({"type": "activation_patching", "strength": 0.5}, "a blend of two prompts is not offered"),
        ({"type": "noise_injection", "strength": -1}, "allowed for noise_injection: 0 … inf"),
        ({"type": "mean_ablation", "component": "attention_pattern"}, "they have no mean"),
        ({"target_positions": "some"}, "target_positions must be a list"),
        ({"target_positions": []}, "target_positions must be a list"),
        ({"target_positions": [1, 1]}, "names the same index twice"),
        ({"layer_name": "transformer.h.7"}, "has layers"),
        ({"target_heads": [1]}, "unknown fields ['target_heads']"),
    ],
)
def test_interventions_that_cannot_be_honoured(client: Client, body: dict[str, Any], message: str) -> None:
    patch = {"prompt": "abc", "baseline_prompt": "xyz", "interventions": [{**AT, **body}]}
    assert message in message_of(client("POST", PATCH, patch))
    assert not any(isinstance(request, GenerateRequest) for request in client.operations.requests)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"interventions": []}, "interventions must be a list of at least one"),
        ({"baseline_prompt": None}, "takes rows from baseline_prompt, which is missing"),
        ({"stream": True}, "stream is not supported"),
        ({"promt": "x"}, "unknown fields ['promt']"),
    ],
)
def test_patches_that_cannot_be_honoured(client: Client, change: dict[str, Any], message: str) -> None:
    body = {"prompt": "abc", "baseline_prompt": "xyz", "interventions": [{**AT, "type": "activation_patching"}]}
    assert message in message_of(client("POST", PATCH, {**body, **change}))
