"""What runs a model over REST, in every form that an answer has."""

from __future__ import annotations

import base64
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_model import N_LAYERS
from rest_caller import HOOK, SAFETENSORS, Caller, error_of, safetensors_of, sse

from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Logit, LogProb, Measured, Target
from probewire.protos.model import Finished, GenerateRequest, RunRequest, Started, TensorFrame, Token
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.sweeps import SweepRequest
from probewire.protos.wire.assemble import assemble
from probewire.protos.wire.codec import from_json
from probewire.protos.wire.delimited import MEDIA_TYPE, iter_delimited


def test_generate_answers_with_one_object(call: Caller) -> None:
    answer = call.post("/v1/generate", {"text": "Hi", "sampling": {"max_new_tokens": 3}, "hooks": [HOOK]}).json()
    assert list(answer) == ["started", "text", "tokens", "measured", "finished", "tensors"]
    assert answer["measured"] == []
    assert answer["text"] == {"input": "abc"}
    assert [token["index"] for token in answer["tokens"]] == [0, 1, 2]
    assert answer["finished"][0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3}
    assert from_json(Started, answer["started"]).inputs[0].tokens == ("H", "i")
    (tensor,) = answer["tensors"]
    assert {key: tensor[key] for key in ("input", "hook", "id", "site", "part")} == {
        "input": "input",
        "hook": 0,
        "id": "hook0",
        "site": "resid_post.1",
        "part": "",
    }
    assert (tensor["positions"], tensor["shape"], tensor["dtype"]) == ([0, 1, 2, 3], [4, 4], "bfloat16")
    array = np.frombuffer(base64.b64decode(tensor["data"]), ml_dtypes.bfloat16).reshape(4, 4)
    assert (array[:, 0] - array[0, 0]).tolist() == [0, 1, 2, 3]


def test_the_short_form_is_the_long_form(call: Caller) -> None:
    sampling = {"max_new_tokens": 2, "temperature": 0.5, "seed": 3}
    call.post("/v1/generate", {"text": "Hi", "hooks": [HOOK], "sampling": sampling})
    call.post("/v1/generate", {"inputs": [{"text": "Hi"}], "plan": {"hooks": [HOOK]}, "sampling": sampling})
    call.post("/v1/run", {"token_ids": [1, 2], "hooks": [HOOK]})
    short, long, run = call.operations.requests
    assert short == long
    assert isinstance(short, GenerateRequest)
    assert short.plan.hooks == (Hook("resid_post.1", capture=Capture()),)
    assert isinstance(run, RunRequest)
    assert run.inputs[0].token_ids == (1, 2)


def test_tensors_may_be_plain_lists_in_which_masked_scores_are_null(call: Caller) -> None:
    body = {"text": "abc", "hooks": [{"site": "attn_scores.0", "capture": {}}], "tensors": "list"}
    (tensor,) = call.post("/v1/run", body).json()["tensors"]
    assert tensor["shape"] == [2, 3, 3]
    first, _, last = tensor["data"][0]
    assert first[1:] == [None, None]
    assert None not in last


def test_a_pattern_gives_one_tensor_a_site_and_several_inputs_stay_apart(call: Caller) -> None:
    inputs = [{"text": "abc", "name": "a"}, {"text": "de", "name": "b"}]
    body = {"inputs": inputs, "plan": {"hooks": [{"site": "z.*", "capture": {}}]}}
    tensors = call.post("/v1/run", body).json()["tensors"]
    assert [(t["input"], t["site"]) for t in tensors] == [(n, f"z.{i}") for n in "ab" for i in range(N_LAYERS)]
    assert [t["shape"] for t in tensors[::N_LAYERS]] == [[3, 2, 2], [2, 2, 2]]


def test_one_safetensors_file_holds_everything(call: Caller) -> None:
    hooks = [HOOK, {**HOOK, "id": "mine", "where": {"positions": [-1]}}, {"site": "q.0", "capture": {}}]
    body = {"text": "abc", "hooks": hooks, "sampling": {"max_new_tokens": 2}}
    tensors, metadata = safetensors_of(call.post("/v1/generate", body, headers=SAFETENSORS))
    assert set(tensors) == {"input/resid_post.1#hook0", "input/resid_post.1#mine", "input/q.0"}
    assert tensors["input/q.0"]["dtype"] == "BF16"
    assert metadata["tensors"]["input/resid_post.1#mine"]["positions"] == [2]
    assert metadata["text"] == {"input": "ab"}
    assert from_json(Finished, metadata["finished"][0]).reason == "length"
    assert from_json(Started, metadata["started"]).model == "fake/model"
    by_format = call.post("/v1/generate", {**body, "format": "safetensors"})
    assert set(safetensors_of(by_format)[0]) == set(tensors)


@pytest.mark.parametrize(
    ("extra", "headers"),
    [
        ({}, {"accept": "text/event-stream"}),
        ({"stream": True}, {}),
        ({"format": "sse"}, {"accept": "application/json"}),
    ],
)
def test_server_sent_events(call: Caller, extra: dict[str, Any], headers: dict[str, str]) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 2}, **extra}
    events = sse(call.post("/v1/generate", body, headers=headers))
    assert [name for name, _ in events] == ["started", "tensor_frame", "token", "tensor_frame", "token", "finished"]
    kinds = {"started": Started, "tensor_frame": TensorFrame, "token": Token, "finished": Finished}
    values = [from_json(kinds[name], data) for name, data in events]
    (capture,) = assemble(value for value in values if isinstance(value, TensorFrame)).values()
    assert capture.positions == (0, 1, 2)


def test_json_lines_with_plain_lists(call: Caller) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 1}, "tensors": "list"}
    response = call.post("/v1/generate", body, headers={"accept": "application/x-ndjson"})
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [next(iter(line)) for line in lines] == ["started", "tensor_frame", "token", "finished"]
    assert np.shape(lines[1]["tensor_frame"]["tensor"]["data"]) == (1, 2, 4)


def test_length_delimited_protobuf(call: Caller) -> None:
    body = {"text": "Hi", "hooks": [HOOK], "sampling": {"max_new_tokens": 2}}
    response = call.post("/v1/generate", body, headers={"accept": MEDIA_TYPE})
    assert response.headers["content-type"] == MEDIA_TYPE
    events = list(iter_delimited([response.content]))
    assert [type(event) for event in events] == [Started, TensorFrame, Token, TensorFrame, Token, Finished]


@pytest.mark.parametrize(
    ("body", "accept", "expected"),
    [
        ({}, "*/*", "application/json"),
        ({}, "", "application/json"),
        ({}, "text/html, application/*;q=0.8", "application/json"),
        ({}, "application/json;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
        ({}, "application/octet-stream", "application/safetensors"),
        ({"stream": True}, "application/json", "text/event-stream; charset=utf-8"),
        ({"stream": True}, MEDIA_TYPE, MEDIA_TYPE),
        ({"stream": False}, "application/json", "application/json"),
        ({"format": "protobuf"}, "*/*", MEDIA_TYPE),
    ],
)
def test_how_the_answer_is_chosen(call: Caller, body: dict[str, Any], accept: str, expected: str) -> None:
    response = call.post("/v1/run", {"text": "Hi", **body}, headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, expected)


@pytest.mark.parametrize(
    ("body", "accept", "message"),
    [
        ({}, "text/html", "Accept 'text/html'"),
        ({"format": "xml"}, "*/*", "format 'xml'; allowed: json"),
        ({"format": "json", "stream": True}, "*/*", "json is not a stream"),
        ({"stream": False}, "text/event-stream", "sse is a stream"),
        ({"stream": "yes"}, "*/*", "stream must be true or false"),
        ({"tensors": "hex"}, "*/*", "tensors 'hex'; allowed: base64, list"),
    ],
)
def test_an_answer_that_cannot_be_is_refused(call: Caller, body: dict[str, Any], accept: str, message: str) -> None:
    response = call.post("/v1/run", {"text": "Hi", **body}, headers={"accept": accept})
    assert response.status_code == 422
    assert message in error_of(response)["message"]
    assert call.operations.requests == []


# ---- gradients and sweeps --------------------------------------------------------------------------------------------

GRADIENT = {"site": "resid_post.1", "capture": {"gradient": True}}
METRIC = {"logit": {"token": 5}}


def test_the_short_forms_of_what_is_measured(call: Caller) -> None:
    call.post("/v1/gradients", {"text": "Hi", "hooks": [GRADIENT], "metric": METRIC, "rules": ["ln"]})
    long = {"inputs": [{"text": "Hi"}], "plan": {"hooks": [GRADIENT]}, "targets": [{"metric": METRIC}], "rules": ["ln"]}
    call.post("/v1/gradients", long)
    scale = {"site": "embed", "edit": {"scale": {"factor": 0.5}}}
    call.post("/v1/sweep", {"text": "Hi", "hooks": [scale], "metric": METRIC, "plans": [{"hooks": [scale]}, {}]})
    short, written, sweep = call.operations.requests
    assert short == written
    assert isinstance(short, GradientsRequest)
    assert (short.targets, short.rules) == ((Target(Logit(5)),), ("ln",))
    assert short.plan.hooks == (Hook("resid_post.1", capture=Capture(gradient=True)),)
    assert isinstance(sweep, SweepRequest)
    assert [len(plan.hooks) for plan in (sweep.base, *sweep.plans)] == [1, 1, 0]
    assert sweep.targets == (Target(Logit(5)),)


def test_a_whole_answer_tells_what_was_measured(call: Caller) -> None:
    answer = call.post("/v1/gradients", {"text": "Hi", "hooks": [GRADIENT], "metric": METRIC}).json()
    assert (answer["tokens"], answer["text"]) == ([], {})
    [found] = (from_json(Measured, item) for item in answer["measured"])
    assert (found.input, found.values.numpy().tolist(), found.plans) == ("input", [[72 + 105]], ())
    assert [tensor["site"] for tensor in answer["tensors"]] == ["resid_post.1"]
    targets = [{"metric": METRIC}, {"metric": {"log_prob": {"token": 6}}}]
    body = {"text": "Hi", "targets": targets, "plans": [{}, {}, {}]}
    for form in ("json", "safetensors"):
        response = call.post("/v1/sweep", {**body, "format": form})
        told = response.json() if form == "json" else safetensors_of(response)[1]
        found = [from_json(Measured, item) for item in told["measured"]]
        assert [event.plans for event in found] == [(0,), (1,), (2,)]
        assert [event.values.numpy().tolist() for event in found] == [[[0.0, 0.1]], [[1.0, 1.1]], [[2.0, 2.1]]]
    request = call.operations.requests[-1]
    assert isinstance(request, SweepRequest)
    assert request.targets == (Target(Logit(5)), Target(LogProb(6)))
    assert request.plans == (Plan(), Plan(), Plan())


def test_a_sweep_is_told_as_it_goes(call: Caller) -> None:
    body = {"text": "Hi", "metric": METRIC, "plans": [{}, {}], "stream": True}
    events = sse(call.post("/v1/sweep", body))
    assert [name for name, _ in events] == ["started", "measured", "measured", "finished"]
    assert [from_json(Measured, data).plans for name, data in events if name == "measured"] == [(0,), (1,)]
    lines = [json.loads(line) for line in call.post("/v1/sweep", {**body, "format": "ndjson"}).text.splitlines()]
    assert [next(iter(line)) for line in lines] == ["started", "measured", "measured", "finished"]
    events = list(iter_delimited([call.post("/v1/sweep", {**body, "format": "protobuf"}).content]))
    assert [type(event) for event in events] == [Started, Measured, Measured, Finished]


def test_a_sweep_that_fails_midway_says_so(call: Caller) -> None:
    body = {"text": "raise:RESOURCE_EXHAUSTED@1", "metric": METRIC, "plans": [{}, {}]}
    assert call.post("/v1/sweep", body).status_code == 429
    *_, (name, data) = sse(call.post("/v1/sweep", {**body, "stream": True}))
    assert (name, data["error"]["code"]) == ("error", "RESOURCE_EXHAUSTED")
