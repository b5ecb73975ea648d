"""One box, several users with keys: who gets in, what each may see, and what survives a restart. The real command."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme

from probewire.clients import Client
from probewire.protos.edits import Add
from probewire.protos.errors import NotFound, PermissionDenied, ProbewireError, Unauthenticated
from probewire.protos.metrics import Logit
from probewire.protos.model import GenerateRequest, Input, Sampling, Started, Token
from probewire.protos.sessions import CreateSessionRequest, UpdateSessionRequest
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.tensors import Tensor
from probewire.server.auth.users import UserLimits, Users
from probewire.server.state.database import State
from tests.apis.asking import service_of
from tests.apis.serving import DEADLINE_S, Served, eventually, serving

PROMPT = "When Mary and John"
STEER = Tensor.of(np.random.default_rng(3).standard_normal(64).astype(np.float32))
Keys = dict[str, str]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def keys(scratch: Path) -> Keys:
    state = State(scratch / "state")
    users = Users(state)
    keys = {
        "ada": users.add("ada", "researcher"),
        "bob": users.add("bob", "researcher", UserLimits(sessions=1)),
        "vic": users.add("vic", "viewer"),
        "root": users.add("root", "admin"),
    }
    state.close()
    return keys


@pytest.fixture(scope="module")
def box(checkpoint: Path, scratch: Path, keys: Keys) -> Generator[Served]:
    audit = ("--audit", str(scratch / "audit.jsonl"), "--slots", "4")
    with serving(checkpoint, scratch, *audit) as served:
        yield served


@pytest.fixture(params=["grpc", "http"])
def connect(request: pytest.FixtureRequest, box: Served, keys: Keys) -> Callable[[str], Client]:
    """A client of a user, over either transport."""
    url = f"grpc://{box.grpc}" if request.param == "grpc" else box.http
    return lambda user: Client(url, api_key=keys.get(user, user) or None, timeout_s=DEADLINE_S)


def steering(sign: float) -> Plan:
    return Plan((Hook("resid_post.0", edit=Add(STEER, alpha=3.0 * sign)),))


def test_nobody_enters_without_a_good_key(connect: Callable[[str], Client], keys: Keys) -> None:
    for key in ("", "wrong", keys["ada"][:-2] + "xx"):
        with connect(key) as client:
            for call in (client.models, client.captures, lambda: client.generate(PROMPT, model="torch")):
                with pytest.raises(Unauthenticated, match="key"):
                    call()
            assert client.health().ready, "a probe needs no key"


def test_http_says_how_to_authenticate(box: Served) -> None:
    answer = box.web.get("/v1/models")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "UNAUTHENTICATED"
    for path in ("/health", "/docs", "/openapi.json"):
        assert box.web.get(path).status_code == 200
    assert box.web.get("/metrics").status_code == 401


def test_roles(connect: Callable[[str], Client]) -> None:
    with connect("vic") as viewer, connect("ada") as researcher:
        assert {info.id for info in viewer.models()} == {"torch", "mlx"}
        for forbidden in (
            lambda: viewer.generate(PROMPT, model="torch"),
            lambda: viewer.gradients(PROMPT, Logit(5), at="embed", model="torch"),
            lambda: viewer.sweep(PROMPT, Logit(5), [[]], model="torch", progress=False),
        ):
            with pytest.raises(PermissionDenied, match="vic is a viewer"):
                forbidden()
        assert researcher.gradients(PROMPT, Logit(5), at="embed", model="torch").gradients["embed"].any()
        assert researcher.sweep(PROMPT, Logit(5), [[]], model="torch", progress=False).array().shape == (1,)
        with pytest.raises(PermissionDenied, match=r"Models\.Unload needs the role admin"):
            researcher.unload("torch")
        with pytest.raises(PermissionDenied, match="admin"):
            researcher.load("other", progress=False)


def test_what_belongs_to_one_does_not_exist_for_another(connect: Callable[[str], Client], model: str) -> None:
    with connect("ada") as ada, connect("bob") as bob:
        [kept] = ada.run(PROMPT, hooks=[Hook("resid_post.1", capture=Capture(store=True))], model=model).only.stored
        session = service_of(ada).create_session(CreateSessionRequest(steering(1), model))
        theirs = service_of(bob)
        patch = {
            "hooks": [{"site": "resid_post.1", "edit": {"replace": {"source": {"stored": {"capture_id": kept.id}}}}}]
        }
        asked = GenerateRequest((Input(PROMPT),), model, sampling=Sampling(max_new_tokens=2), session=session.id)
        for call in (
            lambda: bob.capture(kept.id),
            lambda: bob.delete_capture(kept.id),
            lambda: theirs.session(session.id),
            lambda: theirs.update_session(UpdateSessionRequest(session.id)),
            lambda: theirs.delete_session(session.id),
            lambda: list(theirs.generate(asked)),
        ):
            with pytest.raises(NotFound, match=f"{kept.id}|{session.id}"):
                call()
        from probewire.protos.wire.codec import from_json

        with pytest.raises(NotFound, match=f"no stored capture '{kept.id}'"):
            bob.run(PROMPT, hooks=from_json(Plan, patch).hooks, model=model)
        assert (bob.captures(), theirs.sessions()) == ([], [])
        assert ada.capture(kept.id).shape[1] == 64
        assert [s.id for s in service_of(ada).sessions()] == [session.id]
        ada.delete_capture(kept.id)
        service_of(ada).delete_session(session.id)


def test_registered_hooks_are_the_users_own(box: Served, keys: Keys) -> None:
    hooks = {"hooks": [{"layer_name": "model.layers.1", "component": "residual", "hook_id": "mine"}], "model": "torch"}
    chat = {"model": "torch", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}

    def ask(user: str) -> list[str]:
        path = "/v1/chat/completions/with_activations"
        answer = box.web.post(path, json=chat, headers={"authorization": f"Bearer {keys[user]}"})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["activations"])

    ada = {"authorization": f"Bearer {keys['ada']}"}
    assert box.web.post("/v1/activations/hooks", json=hooks, headers=ada).status_code == 200
    assert (ask("ada"), ask("bob")) == (["mine"], [])
    assert box.web.request("DELETE", "/v1/activations/hooks", headers=ada).status_code == 200


def test_opposite_steering_in_one_batch_is_as_each_alone(
    box: Served, connect: Callable[[str], Client], model: str
) -> None:
    def said(client: Client, session: str) -> list[int]:
        asked = GenerateRequest(
            (Input(PROMPT),), model, sampling=Sampling(max_new_tokens=24, ignore_eos=True), session=session
        )
        return [e.id for e in service_of(client).generate(asked) if isinstance(e, Token)]

    with connect("ada") as ada, connect("bob") as bob:
        made = [
            (client, service_of(client).create_session(CreateSessionRequest(steering(sign), model)))
            for client, sign in ((ada, 1.0), (bob, -1.0))
        ]
        alone = [said(client, session.id) for client, session in made]
        together: dict[int, list[int]] = {}
        threads = [
            threading.Thread(target=lambda i=i, c=c, s=s: together.__setitem__(i, said(c, s.id)))
            for i, (c, s) in enumerate(made)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client, session in made:
            service_of(client).delete_session(session.id)
    assert [together[0], together[1]] == alone
    assert alone[0] != alone[1]


def test_a_session_over_rest_steers_a_chat_of_the_openai_dialect_while_it_streams(box: Served, keys: Keys) -> None:
    headers = {"authorization": f"Bearer {keys['ada']}"}
    hooks = [{"site": "resid_post.0", "edit": {"add": {"vector": STEER.numpy().tolist(), "alpha": 3}}}]
    made = box.web.post("/v1/sessions", json={"model": "torch", "name": "chat", "hooks": hooks}, headers=headers).json()
    where = f"/v1/sessions/{made['id']}"
    chat = {
        "model": "torch",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 1500,
        "temperature": 0,
        "stream": True,
        "probewire": {"session": made["id"]},
    }
    revised: list[dict[str, Any]] = []
    n_before = 0
    with box.web.stream("POST", "/v1/chat/completions", json=chat, headers=headers) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            extra = json.loads(line[6:]).get("probewire", {})
            if "revised" in extra:
                revised.append(extra["revised"])
            n_before += not revised
            if n_before == 3 and not revised:
                body = {"plan": {"hooks": []}, "revision": 1}
                updated = box.web.put(where, json=body, headers=headers)
                assert updated.json()["revision"] == 2, updated.text
    assert [event["revision"] for event in revised] == [2], f"{n_before} chunks came"
    assert revised[0]["hooks"] == []
    stale = box.web.put(where, json={"hooks": [], "revision": 1}, headers=headers)
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "FAILED_PRECONDITION")
    listed = box.web.get("/v1/sessions", headers=headers).json()["sessions"]
    assert [(s["name"], s["revision"]) for s in listed] == [("chat", 2)]
    assert box.web.delete(where, headers=headers).status_code == 200
    assert box.web.get(where, headers=headers).status_code == 404


def test_limits_of_a_user_are_his_own(connect: Callable[[str], Client]) -> None:
    with connect("bob") as bob:
        service = service_of(bob)
        session = service.create_session(CreateSessionRequest(Plan(), "torch"))
        with pytest.raises(ProbewireError, match="bob has 1 sessions, the most allowed"):
            service.create_session(CreateSessionRequest(Plan(), "torch"))
        service.delete_session(session.id)


def test_a_revoked_key_ends_a_stream_under_way(box: Served, scratch: Path) -> None:
    command = [sys.executable, "-m", "probewire.cli", "users", "--state", str(scratch / "state")]
    added = [*command[:4], "add", "eve", *command[4:]]
    key = subprocess.run(added, capture_output=True, text=True, check=True).stdout.strip()
    with (
        Client(box.http, api_key=key) as eve,
        eve.stream(PROMPT, model="torch", max_new_tokens=2000, ignore_eos=True) as stream,
    ):
        next(stream)
        subprocess.run([*command[:4], "revoke", "eve", *command[4:]], check=True, capture_output=True)
        with pytest.raises(Unauthenticated, match="revoked"):
            for _ in stream:
                pass
        with pytest.raises(Unauthenticated):
            eve.models()


def test_activity_and_metrics_show_who_runs_what_and_no_text(box: Served, keys: Keys) -> None:
    headers = {"authorization": f"Bearer {keys['vic']}"}
    with Client(f"grpc://{box.grpc}", api_key=keys["ada"]) as ada:
        hooks = [Hook("resid_post.1", capture=Capture())]
        stream = ada.stream("a very secret prompt", model="torch", hooks=hooks, max_new_tokens=1500, ignore_eos=True)
        with stream:
            for _ in range(5):
                next(stream)
            report = box.web.get("/v1/activity", headers=headers)
            [request] = [r for r in report.json()["requests"] if r["operation"] == "Inference.Generate"]
            assert (request["user"], request["model"], request["sites"]) == ("ada", "torch", ["resid_post.1"])
            assert request["state"] == "running"
            assert request["tokens"] >= 4
            assert request["captured_bytes"] > 0
            [torch] = [m for m in report.json()["models"] if m["id"] == "torch"]
            assert torch["status"]["running"] == 1
            assert torch["memory_bytes"] > 1 << 20
            assert request["id"] == stream.started.request_id
            assert "secret" not in report.text
    eventually(lambda: not box.web.get("/v1/activity", headers=headers).json()["requests"], "the request has gone")
    text = box.web.get("/metrics", headers=headers).text
    assert "secret" not in text
    tokens = re.search(r'probewire_generated_tokens_total\{model="torch",user="ada"\} (\d+)', text)
    assert tokens is not None
    assert int(tokens[1]) >= 5
    for name in ("probewire_queue_seconds", "probewire_first_token_seconds", "probewire_batch_size", "probewire_slots"):
        assert name in text


def test_the_audit_has_a_line_a_request_with_the_id_that_the_caller_saw(box: Served, scratch: Path, keys: Keys) -> None:
    headers = {"authorization": f"Bearer {keys['ada']}"}
    body = {"model": "torch", "text": "audited secret", "hooks": [{"site": "resid_post.*", "capture": {}}]}
    answer = box.web.post("/v1/generate", json=body | {"sampling": {"max_new_tokens": 3}}, headers=headers)
    lines = [json.loads(line) for line in (scratch / "audit.jsonl").read_text().splitlines()]
    [line] = [line for line in lines if line.get("request") == answer.headers["x-request-id"]]
    assert answer.json()["started"]["request_id"] == line["request"]
    assert (line["user"], line["model"], line["sites"], line["code"]) == ("ada", "torch", ["resid_post.*"], "OK")
    assert line["tokens"] == 3
    assert "audited secret" not in (scratch / "audit.jsonl").read_text()


def test_a_requests_own_deadline_frees_what_it_held(box: Served, keys: Keys, model: str) -> None:
    headers = {"authorization": f"Bearer {keys['ada']}", "x-timeout-s": "0.5"}
    body = {"model": model, "text": PROMPT, "sampling": {"max_new_tokens": 2000, "ignore_eos": True}}
    answer = box.web.post("/v1/generate", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    url = f"grpc://{box.grpc}"
    with Client(url, api_key=keys["ada"], timeout_s=0.5) as hasty, pytest.raises(ProbewireError, match="timeout_s"):
        hasty.generate(PROMPT, model=model, max_new_tokens=2000, ignore_eos=True)

    def running() -> int:
        report = box.web.get("/v1/activity", headers={"authorization": f"Bearer {keys['vic']}"}).json()
        return sum(m["status"]["running"] + m["status"]["waiting"] for m in report["models"])

    eventually(lambda: running() == 0, "the slots are free")
    for wrong in ("0", "x", "-1", "nan", "inf"):
        assert box.web.get("/v1/models", headers=headers | {"x-timeout-s": wrong}).status_code == 422


def test_sessions_and_captures_outlive_the_gateway_and_sigterm_drains(
    checkpoint: Path, tmp_path: Path, keys: Keys
) -> None:
    def url(served: Served) -> str:
        return f"grpc://{served.grpc}"

    with serving(checkpoint, tmp_path, "--drain", "10", backends=["torch"]) as served, Client(url(served)) as client:
        hook = Hook("resid_post.1", capture=Capture(store=True))
        result = client.run(PROMPT, hooks=[hook], capture=["resid_post.1"])
        [kept] = result.only.stored
        rows = result["resid_post.1"] if "resid_post.1" in result else client.capture(kept.id)
        session = service_of(client).create_session(CreateSessionRequest(steering(1), name="mine"))
        service_of(client).update_session(UpdateSessionRequest(session.id, steering(-1)))
        stream = client.stream(PROMPT, max_new_tokens=300, ignore_eos=True)
        next(stream)
        import psutil

        psutil.Process(served.pid).terminate()
        eventually(lambda: _refuses(url(served)), "new work is refused")
        assert len(list(stream)) == 299, "what was under way goes on to its end"
        began = time.monotonic()
        psutil.Process(served.pid).wait(20)
        assert time.monotonic() - began < 15
    with serving(checkpoint, tmp_path, backends=["torch"]) as served, Client(url(served)) as client:
        assert np.array_equal(client.capture(kept.id), rows)
        assert [item.id for item in client.captures()] == [kept.id]
        again = service_of(client).session(session.id)
        assert (again.name, again.revision, again.plan) == ("mine", 2, steering(-1))
        asked = GenerateRequest((Input(PROMPT),), sampling=Sampling(max_new_tokens=2), session=session.id)
        started = next(e for e in service_of(client).generate(asked) if isinstance(e, Started))
        assert started.revision == 2


def _refuses(url: str) -> bool:
    with Client(url, timeout_s=5) as client:
        try:
            client.generate(PROMPT, max_new_tokens=1)
        except ProbewireError:
            return True
    return False


def test_tls_on_both_apis(checkpoint: Path, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("ada@lab")
    files = {name: tmp_path / name for name in ("cert", "key", "ca", "client", "client_key", "other")}
    server.cert_chain_pems[0].write_to_path(str(files["cert"]))
    server.private_key_pem.write_to_path(str(files["key"]))
    authority.cert_pem.write_to_path(str(files["ca"]))
    other.cert_pem.write_to_path(str(files["other"]))
    client.cert_chain_pems[0].write_to_path(str(files["client"]))
    client.private_key_pem.write_to_path(str(files["client_key"]))
    context = ssl.create_default_context(cafile=str(files["ca"]))
    context.load_cert_chain(files["client"], files["client_key"])
    tls = ("--tls-cert", files["cert"], "--tls-key", files["key"], "--tls-client-ca", files["ca"])
    pair: dict[str, Any] = {"cert_file": files["client"], "key_file": files["client_key"]}
    with serving(checkpoint, tmp_path, *map(str, tls), backends=["torch"], verify=context) as served:
        assert served.http.startswith("https://")
        for url in (served.http, f"grpcs://{served.grpc}"):
            with Client(url, ca_file=files["ca"], **pair) as good:
                assert good.generate(PROMPT, max_new_tokens=2).text is not None
            with Client(url, ca_file=files["ca"], timeout_s=10) as nameless, pytest.raises(ProbewireError):
                nameless.models()
            with Client(url, ca_file=files["other"], timeout_s=10, **pair) as fooled, pytest.raises(ProbewireError):
                fooled.models()
        with pytest.raises(httpx.HTTPError):
            httpx.get(served.http.replace("https", "http") + "/health", timeout=5)
