"""Gradients and sweeps that cannot be had, on every API: a clear refusal, and the next good request is served."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from probewire.protos import probewire_pb2 as pb
from tests.apis.asking import GOOD_HOOK, PROMPT, add, called, fill, posted
from tests.apis.serving import Served

GRADIENT = {"site": "embed", "capture": {"gradient": True}}
HALVED = {"site": "resid_post.1", "edit": {"scale": {"factor": 0.5}}}
TWO = [{"name": "input", "text": PROMPT}, {"name": "other", "text": PROMPT + " went", "source_only": True}]
GOOD_MEASURES: dict[str, dict[str, Any]] = {
    "gradients": {"plan": {"hooks": [GRADIENT]}},
    "sweep": {"plans": [{"hooks": [HALVED]}, {"hooks": []}]},
    "run": {"plan": {"hooks": [GOOD_HOOK]}},
    "generate": {"plan": {"hooks": [GOOD_HOOK]}},
}


def target(inputs: list[str] | None = None, **metric: Any) -> dict[str, Any]:
    """A target in the contract's JSON."""
    return {"metric": metric} | ({} if inputs is None else {"inputs": inputs})


def at(site: str, **what: Any) -> dict[str, Any]:
    """A plan that asks for a gradient."""
    return {"plan": {"hooks": [{"site": site, "capture": {"gradient": True, **what}}]}}


def asked(operation: str, model: str, change: dict[str, Any]) -> dict[str, Any]:
    """A good request of the operation, changed."""
    body: dict[str, Any] = {"model": model, "inputs": [{"name": "input", "text": PROMPT}]}
    if operation in ("gradients", "sweep"):
        body["targets"] = [target(logit={"token": 5})]
    return {**body, **GOOD_MEASURES[operation], **change}


def coordinate(site: str, **what: Any) -> dict[str, Any]:
    return {"targets": [target(coordinate={"site": site, "position": 1, **what})]}


BAD_MEASURES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "token outside the vocabulary": (
        "gradients",
        {"targets": [target(logit={"token": 261})]},
        "target 0 of input 'input': token id 261",
        "0 … 260",
    ),
    "token of a sweep outside the vocabulary": (
        "sweep",
        {"targets": [target(logit_difference={"correct": [5], "wrong": [9, 999]})]},
        "token id 999",
        "0 … 260",
    ),
    "negative token": ("sweep", {"targets": [target(log_prob={"token": -1})]}, "got -1", "0 or more"),
    "no tokens": (
        "gradients",
        {"targets": [target(logit_difference={"correct": [], "wrong": [1]})]},
        r"logit_difference\.correct is empty",
        "at least one",
    ),
    "too many top logits": ("gradients", {"targets": [target(top_logits={"k": 101})]}, "got 101", "1 … 100"),
    "metric past the end": (
        "sweep",
        {"targets": [target(logit={"token": 5, "position": 99})]},
        "position 99",
        r"\d+ tokens",
    ),
    "unknown rule": ("gradients", {"rules": ["ln", "relp"]}, r"unknown rules \['relp'\]", "ln, identity, half, ah"),
    "a site absent from the family": ("gradients", at("router_logits.0"), "router_logits", "resid_post"),
    "a raw site": ("gradients", at("module:model.layers.1.mlp:output"), "raw modules offer no gradients", "resid_post"),
    "attention under rule ah": (
        "gradients",
        {**at("attn_probs.1"), "rules": ["ah"]},
        "with rule ah attention patterns are constant",
        "leave the rule or the site out",
    ),
    "a gradient before edits": ("gradients", at("embed", before=True), "after all edits", "leave out before"),
    "a gradient in a run": ("run", at("embed"), "capture.gradient", "this is a run"),
    "a gradient in a generation": ("generate", at("embed"), "capture.gradient", "this is a generate"),
    "two targets for one input": (
        "gradients",
        {"targets": [target(logit={"token": 5}), target(log_prob={"token": 5})]},
        "input 'input' has 2 targets",
        "exactly one",
    ),
    "no targets": ("gradients", {"targets": []}, "got 0", "1 to 256"),
    "no targets of a sweep": ("sweep", {"targets": []}, "got 0", "1 to 256"),
    "a target of nobody": (
        "sweep",
        {"targets": [target(["input", "nobody"], logit={"token": 5})]},
        r"target 0: no inputs \['nobody'\]",
        r"\['input'\]",
    ),
    "a target of a source": (
        "gradients",
        {"inputs": TWO, "targets": [target(["other"], logit={"token": 5})]},
        r"no inputs \['other'\]",
        r"\['input'\]",
    ),
    "sources only": (
        "sweep",
        {"inputs": [{"name": "input", "text": PROMPT, "source_only": True}]},
        "every input is source_only",
        "leave it off one",
    ),
    "kl to nobody": (
        "gradients",
        {"targets": [target(kl={"baseline": "nobody"})]},
        "no input 'nobody'",
        r"\['input'\]",
    ),
    "kl of a sweep to nobody": (
        "sweep",
        {"targets": [target(kl={"baseline": "nobody"})]},
        "no input 'nobody'",
        r"\['input'\]",
    ),
    "kl past the baseline's end": (
        "sweep",
        {"inputs": TWO, "targets": [target(kl={"baseline": "other", "baseline_position": 99})]},
        "position 99",
        r"\d+ tokens of 'other'",
    ),
    "path between unequal lengths": (
        "gradients",
        {"inputs": TWO, "path": {"source": "other"}},
        r"'other' has \d+ tokens, 'input' has \d+",
        "equal length",
    ),
    "path from nobody": ("gradients", {"path": {"source": "nobody"}}, "no input 'nobody'", r"\['input'\]"),
    "path of too many steps": (
        "gradients",
        {"inputs": TWO, "path": {"source": "other", "steps": 65}},
        "got 65",
        "1 … 64",
    ),
    "path along attention": (
        "gradients",
        {"inputs": TWO, "path": {"source": "other", "site": "attn_probs.1"}},
        "attn_probs.1 cannot be walked along",
        "embed",
    ),
    "path at a layer that is not there": (
        "gradients",
        {"inputs": [TWO[0], {**TWO[0], "name": "other"}], "path": {"source": "other", "site": "resid_post.3"}},
        "layer 3",
        "resid_post",
    ),
    "values along a path": (
        "gradients",
        {
            "inputs": [TWO[0], {**TWO[0], "name": "other", "source_only": True}],
            "path": {"source": "other"},
            "plan": {"hooks": [GRADIENT, GOOD_HOOK]},
        },
        r"hook 1 \(resid_post\.1\): on a path values differ",
        "read them in a run",
    ),
    "a coordinate of logits": ("gradients", coordinate("logits", unit=5), "cannot be read at logits", "resid_post"),
    "a coordinate without a head": ("gradients", coordinate("z.1", unit=5), "z.1 needs a head", "head"),
    "a head that is not there": ("gradients", coordinate("z.1", unit=5, head=4), "head 4", "0 … 3"),
    "a unit that is not there": ("gradients", coordinate("resid_post.1", unit=64), "unit 64", "0 … 63"),
    "a coordinate's layer": ("gradients", coordinate("mlp_act.3", unit=1), "layer 3", r"\(0, 1, 2\)"),
    "neither unit nor direction": ("gradients", coordinate("mlp_act.1"), "coordinate", "exactly one of unit and"),
    "a coordinate in a sweep": (
        "sweep",
        coordinate("mlp_act.1", unit=1),
        "a sweep measures logits",
        "use a run or gradients",
    ),
    "a sweep that captures": (
        "sweep",
        {"plans": [{"hooks": [HALVED]}, {"hooks": [GOOD_HOOK]}]},
        "plan 1 captures at resid_post.1",
        "use a run",
    ),
    "a base that captures": ("sweep", {"base": {"hooks": [GOOD_HOOK]}}, "base captures at resid_post.1", "use a run"),
    "no plans": ("sweep", {"plans": []}, "got 0", "1 to 16,384 plans"),
    "too many plans": ("sweep", {"plans": [{"hooks": []}] * 16385}, "got 16385", "1 to 16,384 plans"),
    "a bad plan among good ones": (
        "sweep",
        {"plans": [{"hooks": [HALVED]}, {"hooks": [{**HALVED, "site": "resid_post.3"}]}]},
        "plan 1: hook 0.*resid_post.3",
        "layers 0:3",
    ),
    "a vector of another width": (
        "sweep",
        {"plans": [{"hooks": [add(np.ones(32))]}]},
        r"plan 0: hook 0.*\[32\]",
        r"\[64\]",
    ),
    "an empty prompt": ("sweep", {"inputs": [{"name": "input", "text": ""}]}, "no tokens|empty", "at least one"),
    "an over-long prompt": (
        "gradients",
        {"inputs": [{"name": "input", "text": "x" * 3000}]},
        r"30\d\d tokens",
        "at most 2560",
    ),
}
MESSAGES_OF = {
    "gradients": pb.GradientsRequest,
    "sweep": pb.SweepRequest,
    "run": pb.RunRequest,
    "generate": pb.GenerateRequest,
}


def measured_over_grpc(served: Served, operation: str, body: dict[str, Any]) -> tuple[str, str]:
    message = fill(MESSAGES_OF[operation](), body)
    code, answer = called(served, f"Inference/{operation.capitalize()}", message.SerializeToString())
    return code, answer if isinstance(answer, str) else ""


def measured_over_rest(served: Served, operation: str, body: dict[str, Any], answer: str) -> tuple[str, str]:
    return posted(served, f"/v1/{operation}", body | {"format": answer})


MEASURE_FACES: dict[str, Callable[[Served, str, dict[str, Any]], tuple[str, str]]] = {
    "grpc": measured_over_grpc,
    "rest": partial(measured_over_rest, answer="json"),
    "rest safetensors": partial(measured_over_rest, answer="safetensors"),
    "rest stream": partial(measured_over_rest, answer="sse"),
    "rest binary": partial(measured_over_rest, answer="protobuf"),
}


PLACES = [*(("torch", api) for api in MEASURE_FACES), ("mlx", "grpc")]
"""What is refused, both backends' workers refuse alike: one API is enough for the second."""


@pytest.mark.parametrize(("model", "api"), PLACES)
@pytest.mark.parametrize("name", BAD_MEASURES)
def test_what_cannot_be_measured_is_refused(served: Served, model: str, api: str, name: str) -> None:
    operation, change, given, allowed = BAD_MEASURES[name]
    send = MEASURE_FACES[api]
    code, message = send(served, operation, asked(operation, model, change))
    assert code == "INVALID_ARGUMENT", message
    assert re.search(given, message), message
    assert re.search(allowed, message), message
    assert send(served, operation, asked(operation, model, {}))[0] == "OK"


@pytest.mark.parametrize("api", MEASURE_FACES)
def test_a_sweep_of_too_many_forwards_is_refused(served: Served, model: str, api: str) -> None:
    inputs = [{"name": name, "text": PROMPT} for name in "abc"]
    body = asked("sweep", model, {"inputs": inputs, "plans": [{"hooks": []}] * 16384})
    if api == "grpc":
        code, message = measured_over_grpc(served, "sweep", body)
    else:
        response = served.web.post("/v1/sweep", json=body)
        assert response.status_code in (413, 429)
        code, message = (response.json()["error"][part] for part in ("code", "message"))
    assert code == "RESOURCE_EXHAUSTED", message
    assert "16,384 plans on 3 inputs are 49,152 forwards" in message
    assert "32,768" in message
    assert MEASURE_FACES[api](served, "sweep", asked("sweep", model, {}))[0] == "OK"


@pytest.mark.parametrize(
    ("operation", "body", "why"),
    [
        (
            "gradients",
            {"metric": {"logit": {"token": 5}}, "targets": [target(logit={"token": 5})]},
            "targets or metric",
        ),
        ("sweep", {"targets": [target(logit={"token": 5})], "base": {}, "hooks": [HALVED]}, "give base or hooks"),
        ("gradients", {"targets": [target(logits={"token": 5})]}, "one key of logit, logit_difference"),
        ("gradients", {"targets": [{"inputs": ["input"]}]}, "metric is missing"),
        ("sweep", {"targets": [target(logit={"token": "Mary"})]}, "token"),
        ("sweep", {"targets": [target(logit={"token": 5})], "plans": {"hooks": []}}, "plans"),
        ("sweep", {"targets": [target(logit={"token": 5})], "share": "no"}, "share"),
        ("gradients", {"targets": [target(logit={"token": 5})], "rules": ["ln", 3]}, "rules"),
        ("gradients", {"targets": [target(logit={"token": 5})], "direct": 1}, "direct"),
        ("gradients", {"targets": [target(logit={"token": 1e400})]}, "JSON|token"),
    ],
)
def test_json_of_another_shape_is_refused(
    served: Served, model: str, operation: str, body: dict[str, Any], why: str
) -> None:
    rest = {"plans": [{}]} if operation == "sweep" and "plans" not in body else {}
    code, message = posted(served, f"/v1/{operation}", {"model": model, "text": PROMPT, **rest, **body})
    assert code == "INVALID_ARGUMENT", message
    assert re.search(why, message), message
