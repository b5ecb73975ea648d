"""A stand-in for NeuroScope's REST client: its helpers and calls, written from DESIGN.md section 7 alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx

__all__ = ["NeuroScopeClient", "attention_hooks", "circuit_hooks", "converted"]

JsonObject = dict[str, Any]


def circuit_hooks(layers: Iterable[int]) -> list[JsonObject]:
    """`createCircuitAnalysisHooks`: the embedding, and residual, attention and MLP of each layer."""
    hooks: list[JsonObject] = [{"layer_name": "transformer.wte", "component": "embedding", "hook_id": "embedding"}]
    for layer in layers:
        for component in ("residual", "attention", "mlp"):
            hook_id = f"layer_{layer}_{component}"
            hooks.append({"layer_name": f"transformer.h.{layer}", "component": component, "hook_id": hook_id})
    return hooks


def attention_hooks(layers: Iterable[int]) -> list[JsonObject]:
    """`createAttentionAnalysisHooks`: what goes into and comes out of each layer's attention. Ids are the default."""
    components = ("query", "key", "value", "attention_scores", "attention_pattern")
    return [
        {
            "layer_name": f"model.layers.{layer}",
            "component": component,
            "capture_input": False,
            "capture_output": True,
        }
        for layer in layers
        for component in components
    ]


def converted(activations: dict[str, list[JsonObject]]) -> dict[str, list[Any]]:
    """`convertActivationsForNeuroScope`: the bare nested lists, without the batch axis, by hook."""
    return {hook_id: [entry["data"][0] for entry in entries] for hook_id, entries in activations.items()}


class NeuroScopeClient:
    """`LMStudioRESTClient`."""

    def __init__(self, url: str, name: str = "") -> None:
        self._http = httpx.Client(base_url=url, timeout=60, headers={"x-client-id": name} if name else {})

    def close(self) -> None:
        self._http.close()

    def health(self) -> JsonObject:
        return self._read(self._http.get("/health"))

    def list_models(self) -> list[JsonObject]:
        return self._read(self._http.get("/v1/models"))["models"]

    def load_model(self, model_path: str, model_id: str | None = None) -> JsonObject:
        body = {"model_path": model_path} | ({"model_id": model_id} if model_id else {})
        return self._read(self._http.post("/v1/models/load", json=body))

    def generate_with_activations(
        self, messages: list[JsonObject], activation_hooks: list[JsonObject] | None = None, **options: Any
    ) -> JsonObject:
        body = {"messages": messages, "max_tokens": 100, "temperature": 0.7, "top_p": 0.9, "stop": [], "stream": False}
        body |= options | ({"activation_hooks": activation_hooks} if activation_hooks is not None else {})
        return self._read(self._http.post("/v1/chat/completions/with_activations", json=body))

    def stream_with_activations(
        self, messages: list[JsonObject], activation_hooks: list[JsonObject], **options: Any
    ) -> Iterator[JsonObject]:
        body = {"messages": messages, "activation_hooks": activation_hooks, "stream": True, **options}
        with self._http.stream("POST", "/v1/chat/completions/with_activations", json=body) as response:
            assert response.headers["content-type"] == "application/x-ndjson"
            for line in response.iter_lines():
                yield json.loads(line)

    def register_hooks(self, hooks: list[JsonObject], model: str | None = None) -> list[str]:
        body = {"hooks": hooks} | ({"model": model} if model else {})
        answer = self._read(self._http.post("/v1/activations/hooks", json=body))
        assert answer["status"] == "hooks_registered"
        return answer["registered_hooks"]

    def clear_hooks(self, model: str | None = None) -> None:
        body = {"model": model} if model else None
        answer = self._read(self._http.request("DELETE", "/v1/activations/hooks", json=body))
        assert answer == {"status": "hooks_cleared"}

    def patch(self, prompt: str, baseline_prompt: str, interventions: list[JsonObject], **options: Any) -> JsonObject:
        body = {"prompt": prompt, "baseline_prompt": baseline_prompt, "interventions": interventions, **options}
        return self._read(self._http.post("/v1/activations/patch", json=body))

    def _read(self, response: httpx.Response) -> JsonObject:
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {response.json()['error']['message']}")
        return response.json()
