"""Bad input on every API: a clear refusal of the right code, and the next good request is served."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest

from probewire.protos import probewire_pb2 as pb
from tests.apis.asking import GOOD_HOOK, PROMPT, add, called, fill, posted
from tests.apis.serving import LIMITS, Served


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, in no API's words yet."""

    hook: dict[str, Any] | None = None
    text: str = PROMPT
    max_new_tokens: int = 2
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """What to ask, and what the refusal must name: what was given and what is allowed."""

    asked: Asked
    given: str
    allowed: str
    generates_only: bool = False


BAD: dict[str, Bad] = {
    "unknown site": Bad(Asked({"site": "resid_pots.1", "capture": {}}), "resid_pots", "resid_post"),
    "site absent from the family": Bad(
        Asked({"site": "router_logits.0", "capture": {}}), "router_logits", "resid_post"
    ),
    "wrong vector width": Bad(Asked(add(np.ones(32))), r"\[32\]", r"\[64\]"),
    "layer out of range": Bad(Asked({"site": "resid_post.3", "capture": {}}), "resid_post.3", "layers 0:3"),
    "position past the end": Bad(Asked(add(np.ones(64), positions=[999])), "position 999", r"0 … \d+"),
    "position before the start": Bad(Asked(add(np.ones(64), positions=[-99])), "position -99", r"0 … \d+"),
    "NaN vector": Bad(Asked(add([np.nan] + [1.0] * 63)), "NaN", "finite"),
    "infinite vector": Bad(Asked(add([np.inf] * 64)), "64 values that are NaN or infinite", "finite"),
    "empty prompt": Bad(Asked(text=""), "no tokens|empty", "at least one"),
    "over-long prompt": Bad(Asked(text="x" * 3000), r"30\d\d tokens", "at most 2560"),
    "larger than the cache": Bad(Asked(max_new_tokens=3000), r"30\d\d positions", "at most 2560", generates_only=True),
    "no new tokens": Bad(Asked(max_new_tokens=0), "got 0", "1 … ", generates_only=True),
}

GOOD = Asked(GOOD_HOOK)
NEVER = Asked(max_new_tokens=6, stop="a stop string that never comes")


# ---- APIs: each sends what is asked and gives (code, message), or ("OK", the text or nothing) -----------------------

Send = Callable[[Served, str, Asked], tuple[str, str]]


def contract(model: str, asked: Asked, *, generates: bool) -> dict[str, Any]:
    """The request in the contract's JSON, unchecked."""
    body: dict[str, Any] = {"model": model, "inputs": [{"name": "input", "text": asked.text}]}
    if asked.hook is not None:
        body["plan"] = {"hooks": [asked.hook]}
    if generates:
        stop = [asked.stop] if asked.stop else []
        body["sampling"] = {"max_new_tokens": asked.max_new_tokens, "stop": stop, "ignore_eos": True}
    return body


def over_grpc(served: Served, model: str, asked: Asked, *, generates: bool) -> tuple[str, str]:
    message = fill(pb.GenerateRequest() if generates else pb.RunRequest(), contract(model, asked, generates=generates))
    code, answer = called(served, f"Inference/{'Generate' if generates else 'Run'}", message.SerializeToString())
    if isinstance(answer, str):
        return code, answer
    events = [event for data in answer for event in pb.Events.FromString(data).events]
    assert events[-1].WhichOneof("kind") == "finished"
    return code, "".join(event.token.text for event in events)


def over_rest(served: Served, model: str, asked: Asked, *, operation: str, answer: str) -> tuple[str, str]:
    body = contract(model, asked, generates=operation == "generate") | {"format": answer}

    def read(response: httpx.Response) -> str:
        if answer == "json":
            return response.json()["text"].get("input", "")
        if answer == "ndjson":
            tokens = (json.loads(line).get("token", {}) for line in response.text.splitlines())
            return "".join(token.get("text", "") for token in tokens)
        return ""

    return posted(served, f"/v1/{operation}", body, read)


def over_openai(served: Served, model: str, asked: Asked, *, chat: bool, stream: bool) -> tuple[str, str]:
    body: dict[str, Any] = {"model": model, "max_tokens": asked.max_new_tokens, "temperature": 0, "stream": stream}
    body |= {"stop": asked.stop} if asked.stop else {}
    body |= {"probewire": {"hooks": [asked.hook]}} if asked.hook is not None else {}
    messages = [{"role": "user", "content": asked.text}] if asked.text else []
    body |= {"messages": messages} if chat else {"prompt": asked.text}

    def read(response: httpx.Response) -> str:
        if stream:
            assert response.text.endswith("data: [DONE]\n\n")
            return ""
        [choice] = response.json()["choices"]
        return choice["message"]["content"] if chat else choice["text"]

    return posted(served, "/v1/chat/completions" if chat else "/v1/completions", body, read)


FACES: dict[str, Send] = {
    "grpc generate": lambda *asked: over_grpc(*asked, generates=True),
    "grpc run": lambda *asked: over_grpc(*asked, generates=False),
    "rest generate": lambda *asked: over_rest(*asked, operation="generate", answer="json"),
    "rest stream": lambda *asked: over_rest(*asked, operation="generate", answer="ndjson"),
    "rest binary": lambda *asked: over_rest(*asked, operation="generate", answer="protobuf"),
    "rest run": lambda *asked: over_rest(*asked, operation="run", answer="safetensors"),
    "completions": lambda *asked: over_openai(*asked, chat=False, stream=False),
    "completions stream": lambda *asked: over_openai(*asked, chat=False, stream=True),
    "chat": lambda *asked: over_openai(*asked, chat=True, stream=False),
}
PAIRS = [
    pytest.param(api, name, id=f"{api}-{name}")
    for name, bad in BAD.items()
    for api in FACES
    if not (bad.generates_only and api.endswith("run"))
]


def is_served(served: Served, model: str, api: str) -> None:
    """The same API answers the next good request."""
    assert FACES[api](served, model, GOOD)[0] == "OK"


@pytest.mark.parametrize(("api", "name"), PAIRS)
def test_it_is_refused(served: Served, model: str, api: str, name: str) -> None:
    bad = BAD[name]
    code, message = FACES[api](served, model, bad.asked)
    assert code == "INVALID_ARGUMENT", message
    assert re.search(bad.given, message), message
    assert re.search(bad.allowed, message), message
    is_served(served, model, api)


@pytest.mark.parametrize("api", FACES)
def test_a_stop_string_that_never_comes_is_no_error(served: Served, model: str, api: str) -> None:
    plain = FACES[api](served, model, replace(NEVER, stop=""))
    assert FACES[api](served, model, NEVER) == plain
    assert plain[0] == "OK"


# ---- bodies that are no request --------------------------------------------------------------------------------------

PATHS = (
    "/v1/generate",
    "/v1/run",
    "/v1/gradients",
    "/v1/sweep",
    "/v1/tokenize",
    "/v1/models/load",
    "/v1/models/unload",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/with_activations",
    "/v1/activations/hooks",
    "/v1/activations/patch",
    "/v1/saes",
    "/v1/saes/parts",
)
METHODS = (
    "Inference/Generate",
    "Inference/Run",
    "Inference/Gradients",
    "Inference/Sweep",
    "Models/List",
    "Models/Load",
    "Models/Unload",
    "Models/Describe",
    "Models/Tokenize",
    "Models/Tokenizer",
    "Models/Weights",
    "Captures/Get",
    "Captures/List",
    "Captures/Delete",
    "Saes/Load",
    "Saes/Send",
    "Saes/List",
    "Saes/Unload",
)
NO_JSON = {
    "text": (b"hello", "not JSON"),
    "cut off": (b'{"model": "torch", "inputs": [{"te', "not JSON"),
    "NaN": (b'{"model": "torch", "strength": NaN}', "not JSON"),
    "no UTF-8": (b'{"model": "\xff"}', "not JSON"),
    "a list": (b"[1, 2]", r"must be a JSON object, got \[1, 2\]"),
    "nothing": (b"", "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_malformed_json_is_refused(served: Served, name: str) -> None:
    body, why = NO_JSON[name]
    for path in PATHS:
        code, message = posted(served, path, body)
        assert (code, bool(re.search(why, message))) == ("INVALID_ARGUMENT", True), (path, message)
    is_served(served, "torch", "rest generate")


@pytest.mark.parametrize("path", PATHS)
def test_unknown_fields_are_refused_by_name(served: Served, path: str) -> None:
    body = {"text": PROMPT, "model": "torch", "prompt": PROMPT, "messages": [{"role": "user", "content": PROMPT}]}
    kept = {"/v1/generate": "text", "/v1/run": "text", "/v1/tokenize": "text", "/v1/completions": "prompt"}
    kept |= {"/v1/gradients": "text", "/v1/sweep": "text"}
    body = {name: body[name] for name in (kept.get(path, "messages"), "model")}
    if path.startswith("/v1/models"):
        body = {"model": "torch"}
    if path.startswith("/v1/saes"):
        body = {"upload": "0" * 64, "n_bytes": 1} if path.endswith("parts") else {"source": "planets"}
    if path.startswith("/v1/activations"):
        hook = {"layer_name": "transformer.h.1", "component": "mlp"}
        body = {"hooks": [hook]} if path.endswith("hooks") else {"prompt": PROMPT, "interventions": [hook]}
    code, message = posted(served, path, {**body, "zork": 1})
    assert code == "INVALID_ARGUMENT"
    assert "zork" in message
    assert "allowed" in message
    is_served(served, "torch", "rest generate")


def test_unknown_fields_deep_inside_are_refused_too(served: Served, model: str) -> None:
    hooks = ({**GOOD_HOOK, "zork": 1}, {**GOOD_HOOK, "where": {"zork": 1}}, {**GOOD_HOOK, "capture": {"zork": 1}})
    for api in ("rest generate", "rest run", "completions", "chat"):
        for hook in hooks:
            code, message = FACES[api](served, model, Asked(hook))
            assert (code, "zork" in message, "allowed" in message) == ("INVALID_ARGUMENT", True, True), message
        is_served(served, model, api)


@pytest.mark.parametrize("method", METHODS)
def test_malformed_protobuf_is_refused(served: Served, method: str) -> None:
    for data, why in ((b"hello", "not a .* message"), (b"\xff" * 20, "not a .* message"), (b"\x98\x06\x01", r"\[99\]")):
        code, message = called(served, method, data)
        assert code == "INVALID_ARGUMENT", message
        assert re.search(why, str(message)), message
    is_served(served, "torch", "grpc generate")


def test_unknown_protobuf_fields_deep_inside_are_refused_too(served: Served, model: str) -> None:
    request = fill(pb.GenerateRequest(), contract(model, GOOD, generates=True))
    request.plan.hooks[0].where.MergeFromString(b"\x98\x06\x01")
    code, message = called(served, "Inference/Generate", request.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert "plan.hooks.where has unknown field numbers [99]; it has only positions, spans" in message
    is_served(served, model, "grpc generate")


def test_a_body_over_the_limit_is_refused(served: Served, model: str) -> None:
    huge = Asked(text="x" * (LIMITS.max_request_bytes + 1))
    for api in FACES:
        code, message = FACES[api](served, model, huge)
        assert code == "RESOURCE_EXHAUSTED", message
        assert re.search(r"1,?048,?576", message), message
        is_served(served, model, api)


def test_paths_and_methods_that_do_not_exist(served: Served) -> None:
    assert served.web.get("/v1/nothing").status_code == 404
    assert served.web.get("/v1/generate").status_code == 405
    assert called(served, "Inference/Nothing", b"")[0] == "UNIMPLEMENTED"
    is_served(served, "torch", "rest generate")


# ---- NeuroScope ------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": PROMPT}]
CHAT, PATCH = "/v1/chat/completions/with_activations", "/v1/activations/patch"


def neuroscope_chat(layer_name: str = "transformer.h.1", component: str = "mlp", **body: Any) -> dict[str, Any]:
    hook = {"layer_name": layer_name, "component": component}
    return {"messages": MESSAGES, "activation_hooks": [hook], "max_tokens": 2, **body}


def neuroscope_patch(change: dict[str, Any], **body: Any) -> dict[str, Any]:
    intervention = {"layer_name": "transformer.h.1", "component": "mlp", "type": "zero_ablation", **change}
    return {"prompt": PROMPT, "interventions": [intervention], "max_tokens": 2, **body}


NEUROSCOPE: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown component": (CHAT, neuroscope_chat(component="soul"), "'soul'; allowed: residual"),
    "unknown layer name": (CHAT, neuroscope_chat("layers.1"), "'layers.1'; allowed: transformer.h.N"),
    "component absent from the family": (CHAT, neuroscope_chat(component="expert"), "has no experts; use mlp"),
    "layer out of range": (CHAT, neuroscope_chat("transformer.h.3"), "has layers 0 … 2"),
    "stream of a layer out of range": (CHAT, neuroscope_chat("transformer.h.3", stream=True), "has layers 0 … 2"),
    "empty chat": (CHAT, neuroscope_chat(messages=[]), "at least one message"),
    "over-long chat": (CHAT, neuroscope_chat(messages=[{"role": "user", "content": "x" * 3000}]), "at most 2560"),
    "larger than the cache": (CHAT, neuroscope_chat(max_tokens=3000), "at most 2560"),
    "unknown field": (CHAT, neuroscope_chat(zork=1), r"unknown fields \['zork'\]; allowed"),
    "unknown type": (PATCH, neuroscope_patch({"type": "lobotomy"}), "'lobotomy'; allowed: zero_ablation"),
    "strength": (PATCH, neuroscope_patch({"strength": 2}), "strength 2; allowed for zero_ablation: 0 … 1"),
    "position past the end": (PATCH, neuroscope_patch({"target_positions": [999]}), "position 999 is outside 0 … "),
    "empty prompt": (PATCH, neuroscope_patch({}, prompt=""), "at least one token"),
    "over-long prompt": (PATCH, neuroscope_patch({}, prompt="x" * 3000), "at most 2560"),
    "layer of a patch": (PATCH, neuroscope_patch({"layer_name": "model.layers.9"}), "has layers 0 … 2"),
    "unknown field of a patch": (
        PATCH,
        neuroscope_patch({"zork": 1}),
        r"interventions\[0\] has unknown fields \['zork'\]",
    ),
}


@pytest.mark.parametrize("name", NEUROSCOPE)
def test_neuroscope_is_refused(served: Served, model: str, name: str) -> None:
    path, body, why = NEUROSCOPE[name]
    code, message = posted(served, path, {**body, "model": model})
    assert code == "INVALID_ARGUMENT", message
    assert re.search(why, message), message
    good = neuroscope_chat() if path == CHAT else neuroscope_patch({})
    assert posted(served, path, {**good, "model": model})[0] == "OK"


def test_neuroscope_with_a_stop_string_that_never_comes(served: Served, model: str) -> None:
    def text(**more: Any) -> str:
        body = neuroscope_chat(model=model, max_tokens=6, seed=1, **more)
        return served.web.post(CHAT, json=body).json()["choices"][0]["message"]["content"]

    assert text(stop=[NEVER.stop]) == text()
