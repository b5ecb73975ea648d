"""The REST routes around inference: models, weights, captures, health, metrics, and what OpenAPI says of all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_model import FakeOperations
from rest_caller import HOOK, SAFETENSORS, Caller, caller, error_of, safetensors_of

from probewire.protos.loading import LoadRequest
from probewire.protos.model import ModelInfo, StoredCapture
from probewire.protos.tensors import Tensor
from probewire.protos.wire.codec import from_json
from probewire.server.api.http.app import create_app

# ---- models, weights, captures, health -------------------------------------------------------------------------------


def test_models_in_openais_list_and_ours(call: Caller) -> None:
    answer = call.get("/v1/models").json()
    assert answer["object"] == "list"
    assert {**answer["data"][0], "created": 0} == {
        "id": "fake/model",
        "object": "model",
        "created": 0,
        "owned_by": "probewire",
    }
    info = from_json(ModelInfo, answer["models"][0])
    described = call.get("/v1/models/fake/model").json()
    assert described["object"] == "model"
    del described["object"], described["created"], described["owned_by"]
    assert from_json(ModelInfo, described) == info
    assert call.get("/v1/models/fake%2Fmodel").json()["id"] == "fake/model"
    assert call.get("/v1/models/").json()["id"] == "fake/model"
    assert call.get("/v1/models/nobody").status_code == 404


def test_load_in_our_words(call: Caller) -> None:
    answer = call.post("/v1/models/load", {"model": "org/m", "id": "m", "dtype": "float32"}).json()
    assert answer["status"] == "loaded"
    assert answer["model"]["id"] == answer["model_id"] == "m"
    assert call.operations.requests == [LoadRequest("org/m", "m", dtype="float32")]
    assert call.post("/v1/models/unload", {"model": "m"}).json()["status"] == "unloaded"
    assert call.post("/v1/models/unload", {"model": "m"}).status_code == 404
    assert call.post("/v1/models/unload", {}).status_code == 422


def test_load_in_neuroscopes_words(call: Caller) -> None:
    body = {"model_path": "/models/tiny", "trust_remote_code": False, "max_kv_size": 4096, "vocab_only": False}
    answer = call.post("/v1/models/load", {**body, "kv_bits": None}).json()
    assert (answer["model_id"], answer["status"], answer["supports_activations"]) == ("tiny", "loaded", True)
    assert answer["not_applied"] == ["max_kv_size"]
    call.post("/v1/models/load", {"model_path": "/models/tiny", "model_id": "t"})
    assert call.operations.requests == [LoadRequest("/models/tiny", "tiny"), LoadRequest("/models/tiny", "t")]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model is missing"),
        ({"model_path": "m", "trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"model_path": "m", "kv_bits": 4}, "kv_bits is not supported"),
        ({"model": "m", "quantise": 4}, "unknown fields ['quantise']"),
        ({"model": "m", "quantize": 4}, "quantize must be a string"),
        ({"model": "m", "model_path": "n"}, "mean the same"),
        ({"model": 3}, "model must be a string"),
    ],
)
def test_a_load_that_cannot_be_honoured_is_refused(call: Caller, body: dict[str, Any], message: str) -> None:
    response = call.post("/v1/models/load", body)
    assert response.status_code == 422
    assert message in error_of(response)["message"]


@pytest.mark.parametrize(("extra", "accept"), [({"stream": True}, "*/*"), ({}, "application/x-ndjson")])
def test_the_progress_of_a_load_comes_as_lines(call: Caller, extra: dict[str, Any], accept: str) -> None:
    response = call.post("/v1/models/load", {"model": "m", **extra}, headers={"accept": accept})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [(line["stage"], line["done"], line["total"]) for line in lines] == [("reading", 1, 2), ("ready", 2, 2)]
    assert from_json(ModelInfo, lines[-1]["info"]).id == "m"


def test_a_load_that_fails_says_so_in_either_form(call: Caller) -> None:
    assert call.post("/v1/models/load", {"model": "missing", "stream": True}).status_code == 404
    assert call.post("/v1/models/load", {"model": "broken"}).status_code == 409
    lines = call.post("/v1/models/load", {"model": "broken", "stream": True}).text.splitlines()
    assert json.loads(lines[-1])["error"]["code"] == "FAILED_PRECONDITION"


def test_tokenize(call: Caller) -> None:
    short = call.post("/v1/tokenize", {"text": "Hi"}).json()
    assert short == {"token_ids": [72, 105], "tokens": ["H", "i"], "text": "Hi", "raw": ["SA==", "aQ=="]}
    assert call.post("/v1/tokenize", {"input": {"text": "Hi"}, "model": "fake/model"}).json() == short
    chat = call.post("/v1/tokenize", {"messages": [{"role": "user", "content": "x"}]}).json()
    assert chat["text"] == "<user>x\n"
    assert call.post("/v1/tokenize", {"text": "a", "input": {"text": "b"}}).status_code == 422


def test_weights_by_name_as_json_or_safetensors(call: Caller) -> None:
    assert call.get("/v1/weights").json() == {"weights": {"model.layers.0/odd.weight": [2, 3]}}
    path = "/v1/weights/model.layers.0/odd.weight"
    weight = call.get(f"{path}?model=fake/model").json()
    assert (weight["name"], weight["dtype"], weight["shape"]) == ("model.layers.0/odd.weight", "bfloat16", [2, 3])
    assert call.get(f"{path}?tensors=list").json()["data"] == [[0, 1, 2], [3, 4, 5]]
    tensors, _ = safetensors_of(call.get(path, headers=SAFETENSORS))
    assert tensors["model.layers.0/odd.weight"]["shape"] == [2, 3]
    assert call.get(path, headers={"accept": "text/event-stream"}).status_code == 422
    assert call.get("/v1/weights/none").status_code == 404
    assert call.get("/v1/weights?model=none").status_code == 404


def test_stored_captures(call: Caller) -> None:
    stored = StoredCapture("cap-1", "resid_post.1", "input", (0, 1), "float32", (2, 2), "fake/model")
    call.operations.stored["cap-1"] = (stored, Tensor.of([[1.0, 2.0], [3.0, 4.0]]))
    assert from_json(StoredCapture, call.get("/v1/captures").json()["captures"][0]) == stored
    capture = call.get("/v1/captures/cap-1?tensors=list").json()
    assert (capture["positions"], capture["data"]) == ([0, 1], [[1, 2], [3, 4]])
    assert set(safetensors_of(call.get("/v1/captures/cap-1", headers=SAFETENSORS))[0]) == {"cap-1"}
    assert call("DELETE", "/v1/captures/cap-1").json() == {"status": "deleted", "id": "cap-1"}
    assert call("DELETE", "/v1/captures/cap-1").status_code == 404


def test_health_is_200_only_when_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    good = caller().get("/health")
    assert (good.status_code, good.json()["ready"], good.json()["status"]) == (200, True, "healthy")
    assert good.json()["models"] == {"fake/model": "ready"}
    assert good.json()["version"] == "1.2.3"
    bad = caller(ready=False).get("/health")
    assert (bad.status_code, bad.json()["status"]) == (503, "unhealthy")
    assert bad.json()["models"]["fake/model"].startswith("restarting")
    monkeypatch.setattr("probewire.server.api.http.routes.health.PATIENCE_S", 0.05)
    slow = caller(health_delay_s=5.0).get("/health")
    assert (slow.status_code, slow.json()["detail"]) == (503, "the models have not answered within 0.05 s")


def test_metrics_count_what_went_through(call: Caller) -> None:
    call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 3}, "hooks": [HOOK]})
    call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 2}, "stream": True})
    call.post("/v1/generate", {})
    call.get("/v1/models/fake/model")
    call.get("/v1/nothing")
    call("BREW", "/v1/generate")
    response = call.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = response.text.splitlines()
    for line in (
        'probewire_http_requests_total{code="200",method="POST",route="/v1/generate"} 2.0',
        'probewire_http_requests_total{code="422",method="POST",route="/v1/generate"} 1.0',
        'probewire_http_requests_total{code="200",method="GET",route="/v1/models/{model:path}"} 1.0',
        'probewire_http_requests_total{code="404",method="GET",route="none"} 1.0',
    ):
        assert line in lines
    assert any('method="other"' in line for line in lines)


# ---- OpenAPI ---------------------------------------------------------------------------------------------------------


def test_openapi_describes_the_bodies_that_we_parse(call: Caller) -> None:
    document = call.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    body = document["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"inputs", "text", "plan", "hooks", "sampling", "stream", "tensors", "format"} <= set(body["properties"])
    assert body["additionalProperties"] is False
    for path, fields in (("gradients", {"plan", "rules", "direct", "path"}), ("sweep", {"base", "plans", "share"})):
        asked = document["paths"][f"/v1/{path}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"inputs", "text", "targets", "metric", "hooks", "format"} | fields <= set(asked["properties"])
    assert {"logit", "logit_difference", "top_logits", "log_prob", "kl", "coordinate", "weighted_sum"} == {
        next(iter(choice["properties"]))
        for choice in schemas["Target"]["properties"]["metric"]["oneOf"]
        if "properties" in choice
    }
    assert schemas["Hook"]["required"] == ["site"]
    assert {"$ref": "#/components/schemas/Add"} in [
        next(iter(choice["properties"].values())) for choice in schemas["Hook"]["properties"]["edit"]["oneOf"]
    ]
    assert "0 is greedy." in schemas["Sampling"]["properties"]["temperature"]["description"]
    assert schemas["Where"]["properties"]["phase"]["enum"] == ["all", "prompt", "generated"]
    assert {"type": "string", "enum": ["last", "mean", "norm", "next_logprob"]} in schemas["Capture"]["properties"][
        "reduce"
    ]["oneOf"]
    undefined = set(references(document)) - {f"#/components/schemas/{name}" for name in schemas}
    assert undefined == set()
    assert call.get("/docs").status_code == 200


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_route_says_what_it_is_for(call: Caller) -> None:
    document = call.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], path
            assert ("requestBody" in operation) == (method in ("post", "put") or path == "/v1/activations/hooks"), path


# ---- other origins ---------------------------------------------------------------------------------------------------


def test_other_origins_may_read_only_when_the_operator_says_so(call: Caller) -> None:
    origin = {"origin": "http://scope.example"}
    assert "access-control-allow-origin" not in call.get("/v1/models", headers=origin).headers
    app = create_app(FakeOperations(), version="1", allowed_origins=["http://scope.example"])
    allowed = Caller(app, FakeOperations()).get("/v1/models", headers=origin)
    assert allowed.headers["access-control-allow-origin"] == "http://scope.example"
