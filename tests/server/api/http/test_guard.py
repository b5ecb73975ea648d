"""What web pages may do to the server: nothing. A table of requests as browsers and attackers write them, over sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Generator
from typing import Any

import psutil
import pytest
from fake_model import FakeOperations
from http_server import Address, Answer, listening, said

from probewire.server.api.http.app import create_app
from probewire.server.api.http.headers import DATA_HEADERS, PAGE_HEADERS

HOSTS = ("box.lab", "*.cluster.lab")
TOOL = "https://tool.lab"
MODEL = b'{"model": "fake/model"}'
INPUT = b'{"text": "Hi"}'


@pytest.fixture(scope="module")
def operations() -> FakeOperations:
    return FakeOperations()


@pytest.fixture(scope="module")
def address(operations: FakeOperations) -> Generator[Address]:
    """A box without users, as `probewire serve --allowed-host … --allowed-origin …` makes it."""
    app = create_app(operations, version="test", allowed_hosts=HOSTS, allowed_origins=[TOOL])
    with listening(app, log_config=None) as address:
        yield address


@pytest.fixture(autouse=True)
def _unharmed(operations: FakeOperations) -> Generator[None]:
    yield
    assert "fake/model" in operations.loaded, "it was unloaded"


def request(method: str, target: str, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """The bytes of a request with these headers and no others, but for the length of its body."""
    lines = [f"{method} {target} HTTP/{version}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def asked(address: Address, method: str, target: str, *headers: str, **more: Any) -> Answer:
    [answer] = said(address, request(method, target, *headers, **more))
    return answer


def error_of(answer: Answer) -> str:
    return json.loads(answer.body)["error"]["message"]


# ---- the fault that it was made for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body_type", ["text/plain", "application/json", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("host", ["localhost", "rebound.evil.example"])
def test_a_page_of_another_site_unloads_nothing(address: Address, host: str, body_type: str) -> None:
    marks = ("Origin: http://evil.example", "Sec-Fetch-Site: cross-site", f"Content-Type: {body_type}")
    answer = asked(address, "POST", "/v1/models/unload", f"Host: {host}", *marks, body=MODEL)
    assert answer.status == (403 if host == "localhost" else 421)


@pytest.mark.parametrize("body_type", ["text/plain", "application/json"])
def test_a_page_that_rebinds_its_own_name_unloads_nothing(address: Address, body_type: str) -> None:
    """To its browser this is the page's own server, so nothing but the Host tells."""
    marks = ("Origin: http://evil.example", "Sec-Fetch-Site: same-origin", f"Content-Type: {body_type}")
    assert asked(address, "POST", "/v1/models/unload", "Host: evil.example", *marks, body=MODEL).status == 421


# ---- Host ------------------------------------------------------------------------------------------------------------

OURS = [
    "localhost",
    "localhost:{port}",
    "localhost:9000",  # the near end of an ssh tunnel
    "localhost:",
    "LOCALHOST",
    "LocalHost.",
    "localhost.:{port}",
    "127.0.0.1",
    "127.0.0.1:{port}",
    "127.0.0.1.:{port}",
    "127.200.3.4",
    "[::1]",
    "[::1]:{port}",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]:{port}",
    "box.lab",
    "BOX.Lab.:8443",
    "a.cluster.lab",
]
NOT_OURS = [
    "evil.example",
    "evil.example:{port}",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "box.lab.evil.example",
    "evilbox.lab",
    "lab",
    "cluster.lab",
    "a.b.cluster.lab",
    "0.0.0.0",  # noqa: S104 - nothing binds here
    "[::]",
    "10.1.2.3",
    "10.1.2.3:{port}",
    "[2001:db8::1]",
    "[::ffff:10.1.2.3]",
    "127.1",
    "2130706433",
    "0x7f000001",
]
NO_HOSTS = [
    "",
    ":8000",
    "localhost:x",
    "localhost:8000:8000",
    "localhost:123456",
    "localhost, evil.example",
    "localhost evil.example",
    "evil.example#localhost",
    "evil.example@localhost",
    "localhost@evil.example",
    "http://localhost",
    "localhost/",
    "*",
    "::1",
    "[::1",
    "[::1]x",
    "[localhost]",
    "[::1%25lo]",
    "[1:2]",
    "-localhost",
    "localhost..",
    ".localhost",
    "lo\xe7alhost",
    "localhost\t8000",
]


@pytest.mark.parametrize("path", ["/v1/models", "/docs"])
@pytest.mark.parametrize(
    ("host", "status"),
    [(host, status) for hosts, status in ((OURS, 200), (NOT_OURS, 421), (NO_HOSTS, 400)) for host in hosts],
)
def test_only_its_own_names_are_answered(address: Address, path: str, host: str, status: int) -> None:
    host = host.replace("{port}", str(address[1]))
    assert asked(address, "GET", path, f"Host: {host}").status == status


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/v1/models", "/no/such/route", "/v1/models/unload"])
def test_a_foreign_name_gets_nothing_by_any_way(address: Address, method: str, path: str) -> None:
    key = "Authorization: Bearer pw_x"
    data = request(method, path, "Host: evil.example", key) + request("GET", "/health", "Host: localhost")
    if method == "HEAD":  # an answer without the body that its headers announce
        data = request(method, path, "Host: evil.example", key, "Connection: close")
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 421 ")


def test_the_refusal_names_the_fix(address: Address) -> None:
    told = error_of(asked(address, "GET", "/v1/models", "Host: box.example:8000"))
    assert "the name box.example;" in told
    assert "`probewire serve --allowed-host box.example`" in told
    assert "ssh tunnel, use http://localhost" in told
    assert "box.lab" not in told, "what the names are is not for everybody to know"


@pytest.mark.parametrize(
    ("headers", "version", "status"),
    [
        ((), "1.0", 400),
        ((), "1.1", 400),
        (("Host: localhost",), "1.0", 200),
        (("Host: evil.example",), "1.0", 421),
        (("Host: localhost", "Host: localhost"), "1.1", 400),
        (("Host: localhost", "Host: evil.example"), "1.1", 400),
        (("Host: evil.example", "Host: localhost"), "1.0", 400),
    ],
)
def test_one_host_is_needed(address: Address, headers: tuple[str, ...], version: str, status: int) -> None:
    assert asked(address, "GET", "/v1/models", *headers, version=version).status == status


@pytest.mark.parametrize("target", ["http://{host}/v1/models/unload", "http://evil.example/v1/models/unload", "//x/v1"])
@pytest.mark.parametrize(("host", "status"), [("{host}", 404), ("evil.example", 421)])
def test_a_target_with_a_host_of_its_own_leads_nowhere(address: Address, target: str, host: str, status: int) -> None:
    ours = f"127.0.0.1:{address[1]}"
    line = f"Host: {host.replace('{host}', ours)}"
    assert asked(address, "POST", target.replace("{host}", ours), line, body=MODEL).status == status


def test_forwarded_names_are_not_believed(address: Address) -> None:
    lines = ("X-Forwarded-Host: localhost", "Forwarded: host=localhost", "X-Original-Host: localhost")
    assert asked(address, "GET", "/v1/models", "Host: evil.example", *lines).status == 421


def called_at(server: tuple[str, int] | None, host: bytes) -> int:
    """The status of a request whose connection was made to `server`."""
    app, statuses = create_app(FakeOperations(), version="test"), list[int]()
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b"", "http_version": "1.1"}

    sent = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return sent.pop() if sent else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    asyncio.run(app({**scope, "scheme": "http", "server": server, "headers": [(b"host", host)]}, receive, send))
    return statuses[0]


@pytest.mark.parametrize(
    ("server", "host", "status"),
    [
        (("10.0.0.5", 8000), b"10.0.0.5:8000", 200),
        (("10.0.0.5", 8000), b"10.0.0.5", 200),
        (("10.0.0.5", 8000), b"10.0.0.6", 421),
        (("::ffff:10.0.0.5", 8000), b"10.0.0.5", 200),
        (("10.0.0.5", 8000), b"[::ffff:10.0.0.5]", 200),
        (("2001:db8::5", 8000), b"[2001:DB8:0::5]:8000", 200),
        (("fe80::1%eth0", 8000), b"[fe80::1]:8000", 200),
        (None, b"10.0.0.5", 421),
        (None, b"localhost", 200),
    ],
)
def test_the_address_that_the_connection_was_made_to(server: tuple[str, int] | None, host: bytes, status: int) -> None:
    assert called_at(server, host) == status


def other_addresses() -> list[str]:
    """Of this machine, beyond loopback."""
    found = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return [it.address for it in found if it.family == socket.AF_INET and not it.address.startswith("127.")]


@pytest.mark.skipif(not other_addresses(), reason="this machine has no address beyond loopback")
def test_a_server_at_all_addresses_answers_to_each(operations: FakeOperations) -> None:
    with listening(create_app(operations, version="test"), "0.0.0.0", log_config=None) as (_, port):  # noqa: S104 - that is the case
        for own in other_addresses():
            assert asked((own, port), "GET", "/v1/models", f"Host: {own}:{port}").status == 200
            assert asked((own, port), "GET", "/v1/models", "Host: 203.0.113.9").status == 421


def test_over_ipv6(operations: FakeOperations) -> None:
    with listening(create_app(operations, version="test"), "::1", log_config=None) as address:
        origin = f"Origin: http://[::1]:{address[1]}"
        for host, status in ((f"[::1]:{address[1]}", 200), ("[::1]:9", 403), (f"[::2]:{address[1]}", 421)):
            answer = asked(address, "POST", "/v1/tokenize", f"Host: {host}", origin, JSON, body=INPUT)
            assert answer.status == status, host


# ---- pages -----------------------------------------------------------------------------------------------------------

JSON = "Content-Type: application/json"
ORIGINS = {
    "none": None,
    "ours": "http://localhost:{port}",
    "ours, in capitals": "HTTP://LocalHost.:{port}",
    "ours, behind TLS": "https://localhost:{port}",
    "another port": "http://localhost:3000",
    "another name of ours": "http://127.0.0.1:{port}",
    "another site": "http://evil.example",
    "another site, our port": "http://evil.example:{port}",
    "a name like ours": "http://localhost.evil.example:{port}",
    "null": "null",
    "empty": "",
    "a file": "file://",
    "an extension": "chrome-extension://abcdefghijklmnop",
    "garbage": "http://localhost:{port}/",
    "two in one": "http://localhost:{port} http://evil.example",
    "allowed": TOOL,
    "allowed, in capitals": "HTTPS://TOOL.lab:443",
    "like the allowed": "http://tool.lab",
    "beside the allowed": "https://tool.lab:8443",
}
SITES = ("", "same-origin", "none", "same-site", "cross-site", "anything")
# Whether it may change something without a key, by what the browser says in Sec-Fetch-Site, in the order of SITES.
MAY = {name: (False,) * len(SITES) for name in ORIGINS} | {
    "none": (True, True, True, False, False, False),
    "ours": (True, True, True, False, False, False),
    "ours, in capitals": (True, True, True, False, False, False),
    "ours, behind TLS": (False, True, False, False, False, False),  # the browser's own word, where a proxy ends TLS
    "allowed": (True,) * len(SITES),
    "allowed, in capitals": (True,) * len(SITES),
}
KEYS = {"": False, "Bearer pw_x": True, "bearer x": True, "Bearer": False, "Basic dTpw": False, "Negotiate x": False}
WAYS = [("GET", "/v1/models", b""), ("POST", "/v1/tokenize", INPUT), ("DELETE", "/v1/activations/hooks", b"")]


@pytest.mark.parametrize("name", ORIGINS)
def test_who_may_change_something(address: Address, name: str) -> None:
    """Every combination of Origin, Sec-Fetch-Site, authorization and method; bodies are JSON."""
    origin = ORIGINS[name]
    requests, expected = list[bytes](), list[tuple[Any, int]]()
    for site, may in zip(SITES, MAY[name], strict=True):
        for key, is_one in KEYS.items():
            for method, target, body in WAYS:
                headers = [f"Host: localhost:{address[1]}"]
                headers += [] if origin is None else [f"Origin: {origin.replace('{port}', str(address[1]))}"]
                headers += [f"Sec-Fetch-Site: {site}"] if site else []
                headers += [f"Authorization: {key}"] if key else []
                headers += [JSON] if body else []
                requests.append(request(method, target, *headers, body=body))
                passes = may or is_one or method == "GET"
                expected.append(((site, key, method), 200 if passes else 403))
    answers = [answer.status for answer in said(address, b"".join(requests), len(requests))]
    assert list(zip([case for case, _ in expected], answers, strict=True)) == expected


def test_one_bad_header_of_two_is_enough(address: Address) -> None:
    host, ours = f"Host: localhost:{address[1]}", f"Origin: http://localhost:{address[1]}"
    for headers in (
        (ours, "Origin: http://evil.example"),
        ("Origin: http://evil.example", ours),
        (f"Origin: {TOOL}", "Origin: http://evil.example"),
        (ours, "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"),
        (ours, "Sec-Fetch-Site: same-origin, cross-site"),
        ("Sec-Fetch-Site: cross-site", "Authorization: Bearer x", "Authorization: Basic x"),
    ):
        assert asked(address, "POST", "/v1/tokenize", host, *headers, JSON, body=INPUT).status == 403, headers


def test_the_refusal_of_a_page_names_the_fix(address: Address) -> None:
    headers = ("Host: 127.0.0.1:8000", JSON)
    told = error_of(asked(address, "POST", "/v1/tokenize", *headers, "Origin: https://hub.lab:8443", body=INPUT))
    assert "--allowed-origin https://hub.lab:8443" in told
    assert "must pass on the Host that the browser sent" in told
    assert "127.0.0.1:8000" in told
    told = error_of(asked(address, "POST", "/v1/tokenize", *headers, "Sec-Fetch-Site: cross-site", body=INPUT))
    assert "a page of another site" in told


@pytest.mark.parametrize("host", ["localhost:9000", "LOCALHOST:9000", "127.0.0.1:80", "[::1]:9000", "box.lab"])
def test_our_own_page_through_a_tunnel_or_a_proxy(address: Address, host: str) -> None:
    """The browser's name and port for us are not those that we listen at."""
    origin = f"http://{host.lower()}".removesuffix(":80")
    assert asked(address, "POST", "/v1/tokenize", f"Host: {host}", f"Origin: {origin}", JSON, body=INPUT).status == 200


# ---- bodies ----------------------------------------------------------------------------------------------------------

BROWSERS = {
    "a page of ours": ("Origin: http://localhost",),
    "an allowed page": (f"Origin: {TOOL}", "Sec-Fetch-Site: cross-site"),
    "with a key": ("Origin: http://evil.example", "Authorization: Bearer pw_x"),
    "an old fetch": ("Sec-Fetch-Mode: cors",),
    "a form": ("Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: none"),
}
TYPES = {
    ("Content-Type: application/json",): True,
    ("content-type: APPLICATION/JSON",): True,
    ("Content-Type: application/json; charset=utf-8",): True,
    (): False,
    ("Content-Type:",): False,
    ("Content-Type: text/plain",): False,
    ("Content-Type: text/plain;charset=UTF-8",): False,
    ("Content-Type: text/plain; application/json",): False,
    ("Content-Type: application/x-www-form-urlencoded",): False,
    ("Content-Type: multipart/form-data; boundary=application/json",): False,
    ("Content-Type: application/json, text/plain",): False,
    ("Content-Type: application/jsonx",): False,
    ("Content-Type: application/json", "Content-Type: text/plain"): False,
    ("Content-Type: text/plain", "Content-Type: application/json"): False,
}


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("browser", BROWSERS)
def test_browsers_bodies_are_json(address: Address, browser: str, chunked: bool) -> None:
    """No `simple` request is among them, so a browser asks us first."""
    for types, is_json in TYPES.items():
        headers = ("Host: localhost", *BROWSERS[browser], *types)
        if chunked:
            packed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INPUT), INPUT)
            data = request("POST", "/v1/tokenize", *headers, "Transfer-Encoding: chunked") + packed
        else:
            data = request("POST", "/v1/tokenize", *headers, body=INPUT)
        [answer] = said(address, data)
        assert answer.status == (200 if is_json else 415), types
        if not is_json:
            assert "must have content-type: application/json" in error_of(answer)


def test_scripts_may_call_a_body_what_they_like(address: Address) -> None:
    """curl says application/x-www-form-urlencoded of everything."""
    for types in TYPES:
        assert asked(address, "POST", "/v1/tokenize", "Host: localhost", *types, body=INPUT).status == 200, types


def test_no_body_needs_no_type(address: Address) -> None:
    ours = ("Host: localhost", "Origin: http://localhost", "Sec-Fetch-Site: same-origin")
    assert asked(address, "DELETE", "/v1/activations/hooks", *ours).status == 200
    assert asked(address, "DELETE", "/v1/activations/hooks", *ours, "Content-Length: 0").status == 200


# ---- reading from other origins --------------------------------------------------------------------------------------


def preflight(address: Address, origin: str, *headers: str) -> Answer:
    lines = ("Host: localhost", f"Origin: {origin}", "Access-Control-Request-Method: POST", *headers)
    return asked(address, "OPTIONS", "/v1/generate", *lines)


def test_a_preflight_is_granted_to_the_pages_that_were_named(address: Address) -> None:
    answer = preflight(address, TOOL, "Access-Control-Request-Headers: authorization,content-type")
    assert answer.status == 204
    told = {name.lower(): value for name, value in answer.headers.items()}
    assert told["access-control-allow-origin"] == TOOL
    assert told["access-control-allow-headers"] == "authorization,content-type"
    assert told["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
    assert "access-control-allow-credentials" not in told
    assert "authorization" in preflight(address, TOOL).headers["access-control-allow-headers"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost", "http://tool.lab", "*", ""])
def test_and_to_no_other(address: Address, origin: str) -> None:
    answer = preflight(address, origin, "Access-Control-Request-Headers: authorization")
    assert answer.status == 403
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    assert "--allowed-origin" in error_of(answer)
    read = asked(address, "GET", "/v1/models", "Host: localhost", f"Origin: {origin}")
    assert read.status == 200
    assert not [name for name in read.headers if name.lower().startswith("access-control")]


def test_a_named_page_may_read_every_answer_refusals_too(address: Address) -> None:
    for method, target, body, status in (
        ("GET", "/v1/models", b"", 200),
        ("GET", "/nowhere", b"", 404),
        ("POST", "/v1/tokenize", INPUT, 415),
    ):
        answer = asked(address, method, target, "Host: localhost", f"Origin: {TOOL}", body=body)
        assert answer.status == status
        assert answer.headers["access-control-allow-origin"] == TOOL
        assert answer.headers["access-control-expose-headers"] == "x-request-id, retry-after"
        assert "origin" in answer.headers["vary"].lower()


# ---- what is meant to pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "mark"), [("sse", b"event: token"), ("ndjson", b'"token"')])
@pytest.mark.parametrize("browser", [(), ("Origin: http://localhost", "Sec-Fetch-Site: same-origin")])
def test_streams_come_as_they_are_made(address: Address, form: str, mark: bytes, browser: tuple[str, ...]) -> None:
    """A generation that stops for ever after two tokens: both are here all the same."""
    body = json.dumps({"text": "hang@2", "format": form}).encode()
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request("POST", "/v1/generate", "Host: localhost", *browser, JSON, body=body))
        received = b""
        while received.count(mark) < 2:
            some = connection.recv(1 << 16)
            assert some, received
            received += some
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


# ---- headers ---------------------------------------------------------------------------------------------------------

DATA = [
    ("GET", "/v1/models", b"", 200),
    ("GET", "/health", b"", 200),
    ("GET", "/metrics", b"", 200),
    ("GET", "/openapi.json", b"", 200),
    ("GET", "/v1/captures", b"", 200),
    ("GET", "/nowhere", b"", 404),
    ("PATCH", "/v1/models", b"", 405),
    ("POST", "/v1/run", b"[", 422),
    ("POST", "/v1/run", b'{"text": "crash"}', 500),
    ("POST", "/v1/generate", b'{"text": "Hi", "sampling": {"max_new_tokens": 1}, "stream": true}', 200),
    ("POST", "/v1/generate", b'{"text": "Hi", "sampling": {"max_new_tokens": 1}, "format": "safetensors"}', 200),
    ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}', 200),
    ("POST", "/v1/completions", b'{"prompt": "Hi", "max_tokens": 1, "stream": true}', 200),
    ("DELETE", "/v1/activations/hooks", b"", 200),
]


@pytest.mark.parametrize(("method", "target", "body", "status"), DATA)
def test_data_is_no_page_and_is_not_kept(address: Address, method: str, target: str, body: bytes, status: int) -> None:
    answer = asked(address, method, target, "Host: localhost", body=body)
    assert answer.status == status
    assert {name: answer.headers.get_all(name) for name in DATA_HEADERS} == {
        name: [value] for name, value in DATA_HEADERS.items()
    }


@pytest.mark.parametrize("headers", [("Host: evil.example",), ("Host: localhost", "Origin: null", JSON)])
def test_refusals_are_data_too(address: Address, headers: tuple[str, ...]) -> None:
    answer = asked(address, "POST", "/v1/tokenize", *headers, body=INPUT)
    assert answer.status in (403, 421)
    assert answer.headers["x-request-id"].startswith("req-")
    for name, value in DATA_HEADERS.items():
        assert answer.headers.get_all(name) == [value]


@pytest.mark.parametrize("target", ["/docs", "/redoc", "/docs/page.js", "/docs/page.css"])
def test_pages_run_their_own_scripts_alone(address: Address, target: str) -> None:
    answer = asked(address, "GET", target, "Host: localhost")
    for name, value in PAGE_HEADERS.items():
        assert answer.headers.get_all(name) == [value]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
