"""Hostile requests on both APIs of a shared box: refused as the caller's fault, and never at a neighbour's cost."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

from probewire.protos import probewire_pb2 as pb
from tests.apis.hostile_box import REFUSALS, Box, is_an_error, open_box
from tests.apis.hostile_plans import Dice, dice, generate_request, plan, run_request

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)
BLAMELESS = {"OK", *REFUSALS}
"""Codes that say nothing against the server."""

pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def box(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Box]:
    with open_box(checkpoint, tmp_path_factory.mktemp("hostile")) as box:
        yield box


# ---- the OpenAPI document --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["ada", None])
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_the_document_allows_or_forbids(box: Box, user: str | None, mode: GenerationMode) -> None:
    """Every operation. A researcher may not load models, so nothing is fetched; a stranger is let into none but health."""
    document = schemathesis.openapi.from_dict(box.http("GET", "/openapi.json").json())
    answered: dict[str, set[int]] = {}
    with requests.Session() as session:
        session.trust_env = False
        for found in document.get_all_operations():
            operation: Any = found.ok()  # pyright: ignore[reportAttributeAccessIssue] - an Err raises what is wrong
            with contextlib.suppress(Unsatisfiable):  # what takes nothing cannot be given anything wrong
                strategy = operation.as_strategy(generation_mode=mode)
                answered[operation.label] = set()
                n = 2 if user is None else 6  # a stranger's requests end before they are read
                _asked_all_kinds_of_things(box, user, session, strategy, answered[operation.label], n)
    assert len(answered) >= 25
    if user is None:
        assert {label for label, codes in answered.items() if codes - {401}} <= {"GET /health"}


def _asked_all_kinds_of_things(
    box: Box, user: str | None, session: requests.Session, cases: st.SearchStrategy[Any], codes: set[int], n: int
) -> None:
    @settings(REPEATABLE, max_examples=n)
    @given(case=cases)
    def attack(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = ""  # another is answered 404, and what lies behind would not be met
        response = case.call(box.served.http, session, headers=box.headers(user), timeout=30)
        codes.add(response.status_code)
        if response.status_code >= 400:
            assert is_an_error(_as_httpx(response)) in REFUSALS, case.as_curl_command()

    attack()


def _as_httpx(response: Any) -> httpx.Response:
    headers = {name: value[0] for name, value in response.headers.items()}
    return httpx.Response(response.status_code, headers=headers, content=response.content)


# ---- protobuf: bytes, and plans --------------------------------------------------------------------------------------

_PLAN = pb.Plan(hooks=[pb.Hook(site="resid_post.1", edit=pb.Edit(scale=pb.Scale(factor=2)), capture=pb.Capture())])
_READ = pb.Plan(hooks=[pb.Hook(site="resid_post.1", capture=pb.Capture(gradient=True))])
_CUT = pb.Plan(hooks=[pb.Hook(site="mlp_out.1", edit=pb.Edit(scale=pb.Scale(factor=0)))])
_INPUT = pb.Input(name="input", text="Hi")
_TARGET = pb.Target(metric=pb.Metric(logit=pb.Logit(token=1, position=-1)))
VALID: dict[str, Any] = {
    "Models/List": pb.ListRequest(),
    "Models/Load": pb.LoadRequest(model="/nowhere", id="x", backend="torch"),
    "Models/Unload": pb.ModelRequest(model="torch"),
    "Models/Describe": pb.ModelRequest(model="torch"),
    "Models/Tokenize": pb.TokenizeRequest(model="torch", input=_INPUT),
    "Models/Tokenizer": pb.ModelRequest(model="torch"),
    "Models/Weights": pb.WeightsRequest(model="torch", name="model.norm.weight"),
    "Inference/Generate": pb.GenerateRequest(inputs=[_INPUT], plan=_PLAN, sampling=pb.Sampling(max_new_tokens=2)),
    "Inference/Run": pb.RunRequest(inputs=[_INPUT], plan=_PLAN),
    "Inference/Gradients": pb.GradientsRequest(inputs=[_INPUT], targets=[_TARGET], plan=_READ),
    "Inference/Sweep": pb.SweepRequest(inputs=[_INPUT], targets=[_TARGET], plans=[_CUT], base=pb.Plan()),
    "Captures/Get": pb.CaptureRequest(id="cap-x"),
    "Captures/List": pb.ModelRequest(model="torch"),
    "Captures/Delete": pb.CaptureRequest(id="cap-x"),
    "Saes/Load": pb.LoadSaeRequest(name="n", files=pb.SaeFiles(config='{"d_in": 64}', weights=b"\x08" + bytes(40))),
    "Saes/Send": pb.SaePart(upload="0" * 64, n_bytes=40, data=bytes(40)),
    "Saes/List": pb.ModelRequest(model="torch"),
    "Saes/Unload": pb.SaeRequest(name="none", model="torch"),
    "Variants/Load": pb.LoadVariantRequest(
        name="n", model="torch", files=[pb.VariantFile(name="variant.json", data=b'{"format": 1}')]
    ),
    "Variants/Send": pb.SaePart(upload="0" * 64, n_bytes=40, data=bytes(40)),
    "Variants/List": pb.ModelRequest(model="torch"),
    "Variants/Get": pb.VariantRequest(name="none", model="torch"),
    "Variants/Read": pb.VariantPartRequest(name="none", file="variant.json", model="torch"),
    "Variants/Unload": pb.VariantRequest(name="none", model="torch"),
    "Sessions/Create": pb.CreateSessionRequest(plan=_PLAN, model="torch", name="x"),
    "Sessions/Update": pb.UpdateSessionRequest(id="ses-x", plan=_PLAN, revision=1),
    "Sessions/Get": pb.SessionRequest(id="ses-x"),
    "Sessions/List": pb.ListRequest(),
    "Sessions/Delete": pb.SessionRequest(id="ses-x"),
    "Activity/Get": pb.ListRequest(),
    "/grpc.health.v1.Health/Check": health_pb2.HealthCheckRequest(service="torch"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="probewire.v1.Models"
    ),
}


def mutated(d: Dice, data: bytes) -> bytes:
    """The bytes with a few of them changed, cut off, put in or repeated."""
    for _ in range(d.of((1, 2, 3))):
        at = d.below(min(63, len(data) + 1)) if d.below(2) else d.below(8) * len(data) // 8
        some = bytes(d.of((0, 1, 8, 10, 18, 127, 128, 255)) for _ in range(d.of((1, 2, 9))))
        kind = d.of(("replace", "insert", "cut", "repeat"))
        end = at + len(some) if kind == "replace" else at
        data = data[:at] + (b"" if kind == "cut" else some if kind != "repeat" else data) + data[end:]
        data = data[:at] if kind == "cut" else data
    return data


@settings(REPEATABLE, max_examples=200)
@given(d=dice(), noise=st.binary(max_size=40))
def _bytes_on_every_method(box: Box, d: Dice, noise: bytes) -> None:
    method = d.of(tuple(VALID))
    valid = VALID[method].SerializeToString()
    data = noise if d.below(4) == 3 else mutated(d, valid)
    code, answer = box.grpc(method, data, d.of(("ada", "vic")))
    assert code in BLAMELESS, (method, data, answer)


def test_any_bytes_on_every_grpc_method(box: Box) -> None:
    offered = {f"{s.name}/{m.name}" for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods}
    assert {method for method in VALID if method[0] != "/"} == {m for m in offered if not m.startswith("Worker/")}
    for method, valid in VALID.items():
        data = valid.SerializeToString()
        for cut in {data[:n] for n in range(0, len(data) + 1, 1 + len(data) // 6)}:
            assert box.grpc(method, cut)[0] in BLAMELESS, (method, cut)
    _bytes_on_every_method(box)


def test_what_only_the_gateway_may_ask_is_not_offered(box: Box) -> None:
    session = pb.Session(id="ses-x", model="torch", plan=_PLAN, revision=9).SerializeToString()
    caller = (("probewire-caller-bin", b'{"user": {"name": "root", "role": "admin"}, "request_id": "x"}'),)
    for method in ("PutSession", "DropSession", "Status"):
        assert box.grpc(f"Worker/{method}", session, "root")[0] == "UNIMPLEMENTED"
    call = box.served.channel.unary_unary("/probewire.v1.Models/Unload")
    with pytest.raises(Exception, match="UNAUTHENTICATED"):
        call(pb.ModelRequest(model="torch").SerializeToString(), metadata=caller, timeout=10)


def blameless(code: str, answer: object, asked: object) -> None:
    assert code in BLAMELESS, (code, answer, asked)


@settings(REPEATABLE, max_examples=120)
@given(d=dice())
def _plans_that_run(box: Box, d: Dice) -> None:
    asked = run_request(d)
    blameless(*box.grpc("Inference/Run", asked.SerializeToString()), asked)


@settings(REPEATABLE, max_examples=120)
@given(d=dice())
def _plans_that_generate(box: Box, d: Dice) -> None:
    asked = generate_request(d)
    blameless(*box.grpc("Inference/Generate", asked.SerializeToString()), asked)


@settings(REPEATABLE, max_examples=50)
@given(d=dice())
def _plans_of_sessions(box: Box, d: Dice) -> None:
    made = box.grpc("Sessions/Create", pb.CreateSessionRequest(plan=plan(d)).SerializeToString())
    blameless(*made, d)
    if made[0] == "OK":
        [data] = made[1]
        session = pb.Session.FromString(data).id
        changed = pb.UpdateSessionRequest(id=session, plan=plan(d)).SerializeToString()
        blameless(*box.grpc("Sessions/Update", changed), d)
        asked = pb.GenerateRequest(inputs=[_INPUT], sampling=pb.Sampling(max_new_tokens=2), session=session)
        blameless(*box.grpc("Inference/Generate", asked.SerializeToString()), d)
        box.grpc("Sessions/Delete", pb.SessionRequest(id=session).SerializeToString())


@pytest.mark.parametrize("attack", [_plans_that_run, _plans_that_generate, _plans_of_sessions])
def test_any_plan(box: Box, attack: Callable[[Box], None]) -> None:
    attack(box)


# ---- JSON that the schema does not draw ------------------------------------------------------------------------------

DEEP = "nested a thousand times"


def hooked(**hook: Any) -> dict[str, Any]:
    return {"text": "x", "hooks": [{"site": "resid_post.1", "capture": {}} | hook]}


def adding(dtype: str, shape: list[int], data: str) -> dict[str, Any]:
    return hooked(edit={"add": {"vector": {"dtype": dtype, "shape": shape, "data": data}}})


def measuring(metric: Any, **more: Any) -> dict[str, Any]:
    return {"text": "x", "metric": metric, **more}


NUMBERS = (1e30, 2**63, 10**400, -1, 0.5, DEEP)
BEYOND: tuple[tuple[str, Any], ...] = (
    *(("/v1/gradients", measuring({"logit": {"token": n}})) for n in NUMBERS),
    *(("/v1/sweep", measuring({"top_logits": {"k": n}}, plans=[{}])) for n in NUMBERS),
    *(("/v1/gradients", measuring({"logit": {"token": 1, "position": n}})) for n in (2**63, -(2**63), 1e30, DEEP)),
    *(("/v1/gradients", measuring({"logit": {"token": 1}}, path={"source": "input", "steps": n})) for n in NUMBERS),
    ("/v1/gradients", measuring({"coordinate": {"site": "z.1", "position": 0, "unit": 2**62, "head": 2**62}})),
    ("/v1/gradients", measuring({"coordinate": {"site": "resid_post." + "1" * 5000, "position": 0, "unit": 1}})),
    (
        "/v1/gradients",
        measuring({"logit": {"token": 1}}, path={"source": "input", "site": "resid_post." + "1" * 5000}),
    ),
    ("/v1/gradients", measuring({"kl": {"baseline": "input", "baseline_position": 2**62}})),
    ("/v1/gradients", measuring({"logit": {"token": 1}}, rules=["x" * 5000])),
    ("/v1/gradients", measuring(DEEP)),
    ("/v1/sweep", measuring({"logit": {"token": 1}}, plans=DEEP)),
    ("/v1/sweep", measuring({"logit": {"token": 1}}, plans=[{"hooks": DEEP}])),
    ("/v1/sweep", measuring({"logit": {"token": 1}}, plans=[{"hooks": [{"site": "z.1", "edit": {"scale": DEEP}}]}])),
    ("/v1/sweep", measuring({"logit_difference": {"correct": [1, 2**64], "wrong": [2]}}, plans=[{}])),
    *(("/v1/run", {"token_ids": [n]}) for n in (1e30, 2**63, 10**400, -1, DEEP)),
    ("/v1/run", hooked(where={"positions": [2**63]})),
    ("/v1/run", hooked(where={"spans": [{"start": -(2**63), "stop": 2**64 - 1}]})),
    ("/v1/run", hooked(where={"when": {"threshold": 1, "unit": 2**64 - 1}})),
    ("/v1/run", hooked(site="resid_post." + "1" * 5000)),
    ("/v1/run", hooked(site="resid_post.1", id="x" * 5000)),
    ("/v1/run", hooked(edit={"clamp": {"max": 1e300}})),
    ("/v1/run", hooked(edit={"add": {"vector": DEEP}})),
    ("/v1/run", adding("float32", [1], "é")),
    ("/v1/run", adding("int64", [0, 2**62], "")),
    ("/v1/run", adding("int64", [1] * 100, "AAAAAAAAAAA=")),
    ("/v1/run", {"text": "x", "tensors": DEEP}),
    ("/v1/run", {"text": "x", "hooks": DEEP}),
    ("/v1/completions", {"prompt": [2**64 - 1]}),
    ("/v1/completions", {"prompt": ["a", "b"], "seed": 2**63}),
    ("/v1/completions", {"prompt": "x", "temperature": DEEP}),
    ("/v1/tokenize", {"token_ids": [2**63]}),
    ("/v1/sessions", {"name": DEEP}),
    ("/v1/sessions", hooked(edit={"scale": {"factor": 1, "units": [2**63]}}) | {"text": None}),
    (
        "/v1/activations/patch",
        {"prompt": "x", "interventions": [{"layer_name": "model.layers.1", "target_positions": [2**64 - 1]}]},
    ),
)


def test_numbers_and_nesting_that_no_message_holds(box: Box) -> None:
    for path, body in BEYOND:
        text = json.dumps(body).replace(json.dumps(DEEP), "[" * 1000 + "]" * 1000)
        answer = box.http("POST", path, content=text)
        assert is_an_error(answer) == "INVALID_ARGUMENT", (path, text[:200], answer.text[:200])
    answer = box.http("PUT", "/v1/sessions/x", content='{"id": ' + "[" * 1000 + "]" * 1000 + "}")
    assert is_an_error(answer) == "INVALID_ARGUMENT"


def test_a_request_of_very_many_parts_is_refused_before_they_are_looked_at(box: Box) -> None:
    hooks = b"\x0a\x00" * 200_000
    length = bytes((len(hooks) >> shift & 127) | (128 if shift < 14 else 0) for shift in (0, 7, 14))
    request = pb.RunRequest(inputs=[_INPUT]).SerializeToString() + b"\x1a" + length + hooks
    code, message = box.grpc("Inference/Run", request)
    assert code == "INVALID_ARGUMENT"
    assert "more than 131,072 messages" in message


def test_none_of_it_was_a_fault_of_the_server(box: Box) -> None:
    assert "Traceback" not in box.served.log.read_text()


# ---- faults that there were --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["~nosuchuser/x", "x" * 5000])
def test_a_load_is_refused_whatever_its_name(box: Box, model: str) -> None:
    answer = box.http("POST", "/v1/models/load", json={"model": model})
    assert is_an_error(answer) == "PERMISSION_DENIED"


def test_a_run_of_sources_alone_ends(box: Box) -> None:
    asked = pb.RunRequest(inputs=[pb.Input(name="a", text="x", source_only=True)])
    assert box.grpc("Inference/Run", asked.SerializeToString(), timeout=2)[0] in BLAMELESS


def test_a_long_name_of_other_letters_is_not_found(box: Box) -> None:
    assert box.grpc("Models/Describe", pb.ModelRequest(model="日" * 2000).SerializeToString())[0] == "NOT_FOUND"


@pytest.mark.parametrize("name", ["low_rank", "raw module"])
def test_a_wrong_width_is_the_callers(box: Box, name: str) -> None:
    ones = {n: pb.Tensor(dtype="float32", shape=[n, 2], data=b"\0\0\x80\x3f" * 2 * n) for n in (3, 64)}
    b = pb.Tensor(dtype="float32", shape=[2, 64], data=ones[64].data)
    hooks = {
        "low_rank": pb.Hook(site="mlp_out.1", edit=pb.Edit(low_rank=pb.LowRank(a=ones[3], b=b))),
        "raw module": pb.Hook(
            site="module:model.layers.1:output", edit=pb.Edit(project_out=pb.ProjectOut(directions=ones[3]))
        ),
    }
    asked = pb.RunRequest(inputs=[_INPUT], plan=pb.Plan(hooks=[hooks[name]]))
    assert box.grpc("Inference/Run", asked.SerializeToString())[0] == "INVALID_ARGUMENT"


def test_a_long_text_to_tokenize_holds_nobody_up(box: Box) -> None:
    def ask(n: int) -> tuple[str, float]:
        began_s = time.monotonic()
        request = pb.TokenizeRequest(input=pb.Input(text="a" * n)).SerializeToString()
        return box.grpc("Models/Tokenize", request, "vic")[0], time.monotonic() - began_s

    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, 400_000)
        time.sleep(0.1)
        _, short_s = ask(1)
        code, long_s = long.result()
    assert code != "OK" or short_s < long_s / 3
