"""What is not yours: other users' bytes, files of the machine, keys, and more of the server than your share."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import resource
import socket
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest

from probewire.protos import probewire_pb2 as pb
from probewire.server.auth import users as users_module
from probewire.server.auth.access import MAX_FAILURES
from probewire.server.auth.users import Users
from probewire.server.state.database import State
from tests.apis.hostile_box import Box, is_an_error, open_box
from tests.apis.serving import DEADLINE_S, LIMITS, eventually

SECRET = "do not show this to anybody"
N_IDLE = 2000

pytestmark = pytest.mark.usefixtures("unharmed")


@pytest.fixture(scope="module")
def box(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Box]:
    """With a file beside the state folder that no name may reach."""
    scratch = tmp_path_factory.mktemp("strangers")
    (scratch / "secret.txt").write_text(SECRET)
    (scratch / "secret.safetensors").write_text(SECRET)
    with open_box(checkpoint, scratch) as box:
        yield box


# ---- names that are paths --------------------------------------------------------------------------------------------


def hostile_names(box: Box, theirs: str) -> list[str]:
    """Ways to write a path into a name; `theirs` is the id of somebody else's capture."""
    up = "../" * 12
    return [
        f"{up}etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "....//....//secret",
        "..\\..\\secret",
        "../../secret",
        "../../secret.safetensors",
        f"{box.scratch}/secret",
        f"../captures/{theirs}",
        f"./{theirs}",
        f"{theirs}/../{theirs}",
        f"{theirs}\0",
        f"{theirs}.safetensors",
        f" {theirs}",
        theirs.upper(),
        "%2e%2e%2fsecret",
        "\0",
        "..",
        "*",
        "%",
        "cap-%",
        "' OR '1'='1",
        "x" * 20_000,
        "\u202e\u0000\ud7ff😀" * 50,
        "．．／secret",
        "~root/x",
    ]


def ways_to_ask(name: str) -> dict[str, bytes]:
    """Every gRPC method that takes a name, with this one."""
    inputs, sampling = [pb.Input(name="input", text="x")], pb.Sampling(max_new_tokens=1)
    stored = pb.Edit(replace=pb.Replace(source=pb.Source(stored=pb.Stored(capture_id=name))))
    hooks = [pb.Hook(site="resid_post.1", edit=stored, where=pb.Where(positions=pb.Indices(values=[0])))]
    target = pb.Target(metric=pb.Metric(logit=pb.Logit(token=1, position=-1)))
    requests: dict[str, Any] = {
        "Captures/Get": pb.CaptureRequest(id=name),
        "Captures/Delete": pb.CaptureRequest(id=name),
        "Saes/Unload": pb.SaeRequest(name=name),
        "Sessions/Get": pb.SessionRequest(id=name),
        "Sessions/Update": pb.UpdateSessionRequest(id=name),
        "Sessions/Delete": pb.SessionRequest(id=name),
        "Models/Describe": pb.ModelRequest(model=name),
        "Models/Weights": pb.WeightsRequest(model="torch", name=name),
        "Models/Tokenizer": pb.ModelRequest(model=name),
        "Models/Tokenize": pb.TokenizeRequest(model=name, input=inputs[0]),
        "Inference/Generate": pb.GenerateRequest(inputs=inputs, sampling=sampling, session=name),
        "Inference/Run": pb.RunRequest(inputs=inputs, plan=pb.Plan(hooks=hooks)),
        "Inference/Gradients": pb.GradientsRequest(inputs=inputs, targets=[target], plan=pb.Plan(hooks=hooks)),
        "Inference/Sweep": pb.SweepRequest(inputs=inputs, targets=[target], plans=[pb.Plan(hooks=hooks)]),
    }
    return {method: request.SerializeToString() for method, request in requests.items()}


def uploads_called(name: str) -> dict[str, bytes]:
    """What takes the SHA-256 of a file that is sent in parts, with this name instead."""
    files = pb.SaeFiles(config="{}", upload=name)
    return {
        "Saes/Send": pb.SaePart(upload=name, n_bytes=1).SerializeToString(),
        "Saes/Load": pb.LoadSaeRequest(name="n", model="torch", files=files).SerializeToString(),
    }


def shows_nothing(answer: object, what: object) -> None:
    text = str(answer)
    assert SECRET not in text, what
    assert "root:" not in text, what


def keep(box: Box, user: str) -> tuple[str, str]:
    """A stored capture and a session of a user."""
    capture = {"site": "resid_post.1", "capture": {"store": True}}
    ran = box.http("POST", "/v1/run", user, json={"text": "private words", "hooks": [capture]})
    made = box.http("POST", "/v1/sessions", user, json={"name": "private", "hooks": []})
    return ran.json()["finished"][0]["stored"][0]["id"], made.json()["id"]


def test_names_are_never_paths(box: Box) -> None:
    theirs, _ = keep(box, "ada")
    for name in hostile_names(box, theirs):
        for method, request in (ways_to_ask(name) | uploads_called(name)).items():
            code, answer = box.grpc(method, request, "bob")
            assert code in ("NOT_FOUND", "INVALID_ARGUMENT"), (method, name, answer)
            shows_nothing(answer, (method, name))
        for written in {quote(name, safe=""), quote(name, safe="/"), quote(quote(name, safe=""), safe="")}:
            for path in ("models", "weights", "captures", "sessions"):
                for verb in ("GET", "DELETE", "PUT"):
                    answer = box.http(verb, f"/v1/{path}/{written}", "bob", json={} if verb == "PUT" else None)
                    assert is_an_error(answer) in ("NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"), (verb, path, name)
                    shows_nothing(answer.text, (verb, path, name))
    assert box.http("GET", f"/v1/captures/{theirs}").status_code == 200
    assert box.http("DELETE", f"/v1/captures/{theirs}").status_code == 200


def test_an_admin_loads_model_folders_and_nothing_else(box: Box) -> None:
    """Any folder of the machine may be named, so what is no model must be refused without a word of what it holds."""
    odd = box.scratch / "odd"
    odd.mkdir()
    (odd / "config.json").write_text(SECRET)
    wanted = {
        str(box.scratch / "secret.txt"): "is a file",
        "../" * 12 + "etc": "no config.json",
        str(odd): "not valid JSON",
        "/nonexistent/\0": "no file or folder",
    }

    def load(item: tuple[str, str]) -> None:
        answer = box.http("POST", "/v1/models/load", "root", json={"model": item[0], "id": f"odd {item[1]}"})
        assert is_an_error(answer) in ("INVALID_ARGUMENT", "NOT_FOUND"), answer.text
        assert item[1] in answer.json()["error"]["message"]
        shows_nothing(answer.text, item)

    with ThreadPoolExecutor(len(wanted)) as pool:
        list(pool.map(load, wanted.items()))
    assert [model["id"] for model in box.http("GET", "/v1/models").json()["models"]] == ["torch"]


# ---- another user's bytes --------------------------------------------------------------------------------------------


def test_another_users_ids_lead_nowhere(box: Box) -> None:
    capture, session = keep(box, "ada")
    before = box.http("GET", f"/v1/captures/{capture}").json(), box.http("GET", f"/v1/sessions/{session}").json()
    body = {"text": "x", "sampling": {"max_new_tokens": 400, "ignore_eos": True}, "format": "ndjson"}
    with box.served.web.stream("POST", "/v1/generate", json=body, headers=box.headers("ada")) as running:
        request = running.headers["x-request-id"]
        for name in (capture, session, request):
            for method, asked in ways_to_ask(name).items():
                code, answer = box.grpc(method, asked, "bob")
                assert code == "NOT_FOUND", (method, answer)
            for path in ("captures", "sessions", "weights", "models"):
                for verb in ("GET", "DELETE") if path in ("captures", "sessions") else ("GET",):
                    assert is_an_error(box.http(verb, f"/v1/{path}/{name}", "bob")) == "NOT_FOUND"
        mine = box.http("GET", "/v1/models", "bob", headers={"x-request-id": request, "x-client-id": "ada"})
        assert mine.headers["x-request-id"] != request
    source = {"replace": {"source": {"stored": {"capture_id": capture}}}}
    theft = {"site": "resid_post.1", "edit": source, "where": {"positions": [0]}, "capture": {}}
    made = box.http("POST", "/v1/sessions", "bob", json={"hooks": [theft]})
    asked = {"text": "x", "session": made.json().get("id", session), "sampling": {"max_new_tokens": 1}}
    refused = box.http("POST", "/v1/generate", "bob", json=asked)
    assert is_an_error(refused) == "NOT_FOUND"
    for path in ("captures", "sessions"):
        listed = box.http("GET", f"/v1/{path}", "bob").json()[path]
        assert not {item["id"] for item in listed} & {capture, session}
    for path in ("/v1/captures", "/v1/sessions", "/metrics", "/v1/activity"):
        assert "private words" not in box.http("GET", path, "bob").text
    after = box.http("GET", f"/v1/captures/{capture}").json(), box.http("GET", f"/v1/sessions/{session}").json()
    assert after == before


# ---- more than a share -----------------------------------------------------------------------------------------------


def test_messages_over_the_limit_are_refused_however_they_are_packed(box: Box) -> None:
    for n_bytes in (LIMITS.max_request_bytes + 1, 100 << 20):
        data = pb.RunRequest(inputs=[pb.Input(text="x" * n_bytes)]).SerializeToString()
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert box.grpc("Inference/Run", data, compression=compression)[0] == "RESOURCE_EXHAUSTED"
    # HTTP's content-encoding is not undone, so nothing unpacks.
    answer = box.http("POST", "/v1/run", content=b"\x1f\x8b" + b"\0" * 99, headers={"content-encoding": "gzip"})
    assert is_an_error(answer) == "INVALID_ARGUMENT"


def test_nothing_is_read_of_a_stranger_over_grpc(box: Box) -> None:
    """Refused while the message is still to come; read first, many of them would fill the memory without any key."""

    def never() -> Iterator[bytes]:
        waiting.wait(DEADLINE_S)
        yield b""

    waiting = threading.Event()
    for method in ("Inference/Generate", "Models/List"):
        call: Any = box.served.channel.stream_unary(f"/probewire.v1.{method}")
        with pytest.raises(grpc.RpcError) as refused:
            call(never(), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    waiting.set()


@contextlib.contextmanager
def idle_connections(box: Box, n: int) -> Generator[list[socket.socket]]:
    """As many to each port."""
    places = [url.rpartition(":")[::2] for url in (box.served.http.removeprefix("http://"), box.served.grpc)]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in range(n)
            for host, port in places
        ]


def test_thousands_of_idle_connections_do_not_keep_others_out(box: Box, truth: tuple[Any, ...]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = min(N_IDLE, (hard - 512) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * n + 512), hard))
    before = box.gateway.num_fds()
    with idle_connections(box, n) as connections:
        eventually(lambda: box.gateway.num_fds() >= before + 2 * n - 8, "all of them are open")
        began_s = time.monotonic()
        assert (box.truth(), box.pids()) == truth
        with httpx.Client(base_url=box.served.http, trust_env=False) as newcomer:
            assert newcomer.get("/health").status_code == 200
        assert time.monotonic() - began_s < 5
        assert len(connections) == 2 * n
    eventually(lambda: box.gateway.num_fds() < before + 50, "their files are closed")


HEAD = b"Host: localhost\r\nauthorization: Bearer %s\r\n"
RAW: dict[str, tuple[bytes, set[int]]] = {
    "garbage": (b"\x00\xff\x16\x03\x01" * 50, {400}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500, {400}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {401, 400}),
    "HTTP/0.9": (b"GET /\r\n\r\n", {400}),
    "HTTP/9.9": (b"GET /v1/models HTTP/9.9\r\n" + HEAD + b"\r\n", {200}),
    "no host": (b"GET /v1/models HTTP/1.1\r\n\r\n", {400}),
    "proxy": (b"GET http://evil/v1/models HTTP/1.1\r\n" + HEAD + b"\r\n", {404}),
    "tunnel": (b"CONNECT evil:443 HTTP/1.1\r\n" + HEAD + b"\r\n", {404}),
    "star": (b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n", {404}),
    "method": (b"F" * 3000 + b" / HTTP/1.1\r\n" + HEAD + b"\r\n", {404}),
    "websocket": (b"GET /v1/models HTTP/1.1\r\n" + HEAD + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", {200}),
    "huge header": (b"GET / HTTP/1.1\r\n" + HEAD + b"x: " + b"a" * 70_000, {400}),
    "many headers": (b"GET /v1/models HTTP/1.1\r\n" + HEAD + b"a: b\r\n" * 5000 + b"\r\n", {200, 400}),
    "NUL header": (b"GET /v1/models HTTP/1.1\r\n" + HEAD + b"x: a\0b\r\n\r\n", {400}),
    "NUL path": (b"GET /v1/models/%ff%00 HTTP/1.1\r\n" + HEAD + b"\r\n", {404}),
    "bytes in the path": (b"GET /v1/models/\xff HTTP/1.1\r\n" + HEAD + b"\r\n", {400}),
    "bytes in the query": (b"GET /v1/captures?model=%ff%00 HTTP/1.1\r\n" + HEAD + b"\r\n", {200}),
    "two lengths": (b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}", {400}),
    "negative length": (b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"content-length: -2\r\n\r\n{}", {400}),
    "absurd length": (b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}", {400}),
    "length and chunks": (
        b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        {400},
    ),
    "another name": (b"GET /v1/models HTTP/1.1\r\n" + HEAD.replace(b"localhost", b"evil") + b"\r\n", {421}),
    "another page": (
        b"POST /v1/run HTTP/1.1\r\n"
        + HEAD
        + b"origin: null\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\n{}",
        {415},
    ),
    "bad chunk": (b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n", {400}),
    "odd coding": (b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n", {400}),
    "too much, announced": (
        b"POST /v1/run HTTP/1.1\r\n" + HEAD + b"expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n",
        {413},
    ),
    "pipelined": ((b"GET /v1/models/x HTTP/1.1\r\n" + HEAD + b"\r\n") * 50, {404}),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_hardly_http(box: Box, name: str) -> None:
    """Answered with a 4xx, or as the request that they happen to be."""
    data, allowed = RAW[name]
    host, _, port = box.served.http.removeprefix("http://").rpartition(":")
    expected = data.count(b" HTTP/1.1\r\n") if name == "pipelined" else 1
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data.replace(b"%s", box.keys["ada"].encode()))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while answer.count(b"HTTP/1.1 ") < expected and (some := connection.recv(1 << 16)):
                answer += some
    statuses = {int(line[:3]) for line in answer.split(b"HTTP/1.1 ")[1:]}
    assert statuses, name
    assert statuses <= allowed
    assert answer.count(b"HTTP/1.1 ") >= expected


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_is_compared_in_constant_time_whether_its_user_exists_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed and compared alike, so that no answer comes sooner because nobody has such a key."""
    users = Users(State(tmp_path))
    key = users.add("ada", "viewer")
    hashed: list[bytes] = []
    compared: list[int] = []

    def sha256(data: bytes) -> Any:
        hashed.append(data)
        return hashlib.sha256(data)

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(len(a) - len(b))
        return hmac.compare_digest(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(users_module, "hashlib", _Only(sha256=sha256))
        patch.setattr(users_module, "hmac", _Only(compare_digest=compare))
        wrong = [key[:-1] + ("A" if key[-1] != "A" else "B"), "pw_AAAAAAAA_" + "x" * 43, "", "x", "é" * 9]
        assert [users.by_key(text) for text in wrong] == [None] * len(wrong)
        found = users.by_key(key)
    assert found is not None
    assert hashed == [text.encode() for text in (*wrong, key)]
    assert compared == [0] * len(hashed)


class _Only:
    """A module with these names alone."""

    def __init__(self, **names: Any) -> None:
        self.__dict__.update(names)


def test_every_wrong_key_is_answered_alike_until_the_address_has_to_wait(box: Box) -> None:
    """Last, as guesses from this address are refused for a minute. A good key passes all the while."""
    good = box.keys["ada"]
    wrong = {
        "nobody's": "Bearer pw_AAAAAAAA_" + "x" * 43,
        "another secret": f"Bearer {good[:-4]}AAAA",
        "revoked": f"Bearer {box.keys['eve']}",
        "cut off": f"Bearer {good[:-1]}",
        "longer": f"Bearer {good}x",
        "no key": "Bearer",
        "another scheme": f"Basic {good}",
        "bare": good,
        "bytes": "Bearer \xff\xfe",
    }
    answers = [
        box.served.web.get("/v1/models", headers={"authorization": text.encode("latin-1")}) for text in wrong.values()
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json()["error"]["message"] for answer in answers}) == 1
    said = {box.grpc("Models/List", b"", key) for key in ("pw_AAAAAAAA_" + "x" * 43, box.keys["eve"], good[:-1])}
    assert said == {("UNAUTHENTICATED", answers[0].json()["error"]["message"])}
    guesses = [box.http("GET", "/v1/models", f"guess {n}") for n in range(MAX_FAILURES)]
    assert {guess.status_code for guess in guesses} == {401, 429}
    limited = guesses[-1]
    assert is_an_error(limited) == "RESOURCE_EXHAUSTED"
    assert 0 < int(limited.headers["retry-after"]) <= 60
    assert 0 < limited.json()["error"]["retry_after_s"] <= 60
    code, message = box.grpc("Models/List", b"", "another guess")
    assert (code, "wrong within the last minute" in message) == ("RESOURCE_EXHAUSTED", True)
    assert box.http("GET", "/v1/models").status_code == 200
    assert box.grpc("Models/List", b"")[0] == "OK"


def test_none_of_it_was_a_fault_of_the_server(box: Box) -> None:
    assert "Traceback" not in box.served.log.read_text()
