"""The door as `probewire serve` builds it from its options: names, pages and proxies, on both APIs. No model is loaded."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme

from probewire.cli.serve.command import add_arguments, gateway_config
from probewire.cli.serve.http import HttpServer
from probewire.cli.serve.serving import _listen
from probewire.cli.serve.tls import Tls
from probewire.protos.errors import InvalidArgument
from probewire.server.api.grpc.service import RpcServer, admit_at_the_door
from probewire.server.auth.access import MAX_FAILURES
from probewire.server.auth.proxies import Proxies
from probewire.server.auth.users import Users
from probewire.server.config import GatewayConfig
from probewire.server.gateway.gateway import Gateway
from probewire.server.state.database import State

LIST = "/probewire.v1.Models/List"


def config_of(*options: str) -> GatewayConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return gateway_config(parser.parse_args(options))


@dataclass(frozen=True, slots=True)
class Door:
    """Where both APIs listen, and a key."""

    http: str
    grpc: str
    key: str
    audit: Path

    def get(self, *headers: tuple[str, str], verify: ssl.SSLContext | bool = True, path: str = "/v1/models") -> int:
        with httpx.Client(trust_env=False, verify=verify) as client:
            return client.get(self.http + path, headers=list(headers)).status_code

    def call(self, *metadata: tuple[str, str]) -> str:
        with grpc.insecure_channel(self.grpc) as channel:
            call: Any = channel.unary_unary(LIST)
            try:
                call(b"", timeout=10, metadata=metadata)
            except grpc.RpcError as error:
                return error.code().name
        return "OK"


@contextmanager
def serving(folder: Path, *options: str, tls: Tls | None = None, users: bool = False) -> Generator[Door]:
    """Both APIs over a gateway without workers, in a thread of their own."""
    state = folder / "state"
    key = ""
    if users:
        opened = State(state)
        key = Users(opened).add("ada", "admin")
        opened.close()
    config = config_of("--state", str(state), "--audit", str(folder / "audit.jsonl"), "--drain", "1", *options)
    started, stop = threading.Event(), threading.Event()
    ports: list[int] = []

    async def serve() -> None:
        gateway = Gateway(config)
        rpc = RpcServer(
            gateway,
            admit_at_the_door(gateway.policy.access, Proxies.of(config.trusted_proxies)),
            max_request_bytes=1 << 20,
            streams=gateway.streams,
        )
        listener = _listen(config.host, 0)
        ports.extend((listener.getsockname()[1], rpc.bind("127.0.0.1:0")))
        http = HttpServer(gateway, config, tls)
        await rpc.start()
        task = asyncio.create_task(http.serve(sockets=[listener]))
        started.set()
        await asyncio.to_thread(stop.wait)
        http.should_exit = True
        await asyncio.gather(rpc.stop(0), task)
        await gateway.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        host = f"[{config.host}]" if ":" in config.host else config.host
        scheme = "https" if tls else "http"
        yield Door(f"{scheme}://{host}:{ports[0]}", f"127.0.0.1:{ports[1]}", key, folder / "audit.jsonl")
    finally:
        stop.set()
        thread.join(20)


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_names_that_the_options_give(tmp_path: Path) -> None:
    with serving(tmp_path, "--allowed-host", "Box.LAB", "--allowed-host", "10.0.0.9") as door:
        for host, status in (
            ("box.lab", 200),
            ("box.lab:8443", 200),
            ("10.0.0.9", 200),
            ("localhost", 200),
            ("evil.example", 421),
        ):
            assert door.get(("host", host)) == status, host


def test_the_host_that_it_listens_on_is_a_name_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0") as door:  # noqa: S104 - as it is printed, and clicked on
        port = httpx.URL(door.http).port
        local = Door(f"http://127.0.0.1:{port}", "", "", tmp_path)
        assert local.get(("host", f"0.0.0.0:{port}")) == 200
        assert local.get(("host", "10.9.9.9")) == 421


def test_brackets_around_the_host_are_as_good_as_none(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "[::1]") as door:
        assert door.http.startswith("http://[::1]:")
        assert door.get() == 200


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def issued(ca: trustme.CA, folder: Path, *names: str) -> Tls:
    cert = ca.issue_cert(*names)
    cert.private_key_pem.write_to_path(folder / "box.key")
    for blob in cert.cert_chain_pems:
        blob.write_to_path(folder / "box.pem", append=True)
    found = Tls.of(folder / "box.pem", folder / "box.key", None)
    assert found is not None
    return found


def test_the_names_in_the_certificate(ca: trustme.CA, tmp_path: Path) -> None:
    tls = issued(ca, tmp_path, "127.0.0.1", "Box.lab", "*.cluster.lab", "10.0.0.5", "2001:db8::5")
    assert set(tls.names()) == {"127.0.0.1", "box.lab", "*.cluster.lab", "10.0.0.5", "2001:db8::5"}
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    with serving(tmp_path, tls=tls) as door:
        for host, status in (
            ("box.lab", 200),
            ("node1.cluster.lab:8000", 200),
            ("10.0.0.5:8000", 200),
            ("[2001:db8::5]:8000", 200),
            ("cluster.lab", 421),
            ("a.node1.cluster.lab", 421),
            ("10.0.0.6", 421),
        ):
            assert door.get(("host", host), verify=trusting) == status, host
        page = {"host": "box.lab:8000", "content-type": "application/json"}
        with httpx.Client(trust_env=False, verify=trusting, headers=page) as client:
            for origin, status in (("https://box.lab:8000", 409), ("http://box.lab:8000", 403)):
                answer = client.post(f"{door.http}/v1/tokenize", json={"text": "x"}, headers={"origin": origin})
                assert answer.status_code == status, "409: no model is loaded"


def test_a_certificate_without_names(ca: trustme.CA, tmp_path: Path) -> None:
    assert issued(ca, tmp_path, "ada@lab.example").names() == ()


@pytest.mark.parametrize(
    ("option", "given", "told"),
    [
        ("--allowed-host", "https://box.lab", "is no host; it looks like box.lab"),
        ("--allowed-host", "box.lab/x", "is no host"),
        ("--allowed-host", "*", "is no host"),
        ("--allowed-host", "", "is no host"),
        ("--allowed-host", "box.lab:8000", "a host is allowed at any: write box.lab"),
        ("--allowed-origin", "*", "is no page's origin; it looks like https://tool.lab"),
        ("--allowed-origin", "null", "is no page's origin"),
        ("--allowed-origin", "tool.lab", "is no page's origin"),
        ("--allowed-origin", "https://tool.lab/page", "is no page's origin"),
        ("--trusted-proxy", "proxy.lab", "is no address or network"),
    ],
)
def test_an_option_that_means_nothing_is_refused(option: str, given: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        config_of(option, given)


def test_what_the_options_mean_is_written_in_one_way() -> None:
    given = ("--allowed-host", "Box.Lab.", "--allowed-host", "2001:DB8::1", "--allowed-origin", "HTTPS://Tool.lab:443")
    config = config_of(*given, "--host", "[::1]")
    assert config.allowed_hosts == ("box.lab", "2001:db8::1")
    assert config.allowed_origins == ("https://tool.lab",)
    assert config.host == "::1"


# ---- proxies ---------------------------------------------------------------------------------------------------------


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


def forwarded(address: str) -> tuple[str, str]:
    return ("x-forwarded-for", address)


def test_an_address_that_callers_give_themselves_is_not_believed(tmp_path: Path) -> None:
    """Not from this machine either: else each guess at a key would come from a new address."""
    with serving(tmp_path, users=True) as door:
        wrong = [door.get(bearer("pw_wrong"), forwarded(f"6.6.{n}.6")) for n in range(MAX_FAILURES + 1)]
        assert wrong == [401] * MAX_FAILURES + [429]
        assert door.call(bearer("pw_wrong"), forwarded("6.7.7.7")) == "RESOURCE_EXHAUSTED", "gRPC counts with HTTP"
        assert door.get(bearer(door.key)) == 200


def test_a_trusted_proxy_says_who_called(tmp_path: Path) -> None:
    with serving(tmp_path, "--trusted-proxy", "127.0.0.1", users=True) as door:
        for n in range(MAX_FAILURES // 2):
            assert door.get(bearer("pw_wrong"), forwarded(f"1.1.{n}.1, 6.6.6.6")) == 401
            assert door.call(bearer("pw_wrong"), forwarded(f"1.2.{n}.1"), forwarded("6.6.6.6")) == "UNAUTHENTICATED"
        assert door.get(bearer("pw_wrong"), forwarded("6.6.6.6")) == 429
        assert door.call(bearer("pw_wrong"), forwarded("6.6.6.6:4711")) == "RESOURCE_EXHAUSTED"
        assert door.get(bearer("pw_wrong"), forwarded("7.7.7.7")) == 401
        assert door.call(bearer("pw_wrong"), forwarded("7.7.7.7")) == "UNAUTHENTICATED"


@pytest.mark.parametrize(("options", "seen"), [((), "127.0.0.1"), (("--trusted-proxy", "127.0.0.0/8"), "6.6.6.6")])
def test_the_audit_names_the_address_that_is_believed(tmp_path: Path, options: tuple[str, ...], seen: str) -> None:
    with serving(tmp_path, *options, users=True) as door:
        assert door.get(bearer(door.key), forwarded("6.6.6.6"), path="/v1/weights/none") == 409
        with grpc.insecure_channel(door.grpc) as channel:
            call: Any = channel.unary_stream("/probewire.v1.Models/Weights")
            with pytest.raises(grpc.RpcError):
                list(call(b"", timeout=10, metadata=(bearer(door.key), forwarded("6.6.6.6"))))
    lines = [json.loads(line) for line in door.audit.read_text().splitlines()]
    assert [(line["operation"], line["peer"]) for line in lines] == [("Models.Weights", seen)] * 2


@pytest.mark.parametrize(("options", "status"), [((), 403), (("--trusted-proxy", "127.0.0.1"), 409)])
def test_a_trusted_proxy_says_in_which_scheme(tmp_path: Path, options: tuple[str, ...], status: int) -> None:
    """A page at https://box.lab is our own then, to browsers too that say nothing of the site."""
    headers = {"host": "box.lab", "origin": "https://box.lab", "x-forwarded-proto": "https"}
    with serving(tmp_path, "--allowed-host", "box.lab", *options) as door, httpx.Client(trust_env=False) as client:
        answer = client.post(f"{door.http}/v1/tokenize", json={"text": "x"}, headers=headers)
        assert answer.status_code == status


# ---- lengths that can be read in two ways ----------------------------------------------------------------------------

BEHIND = b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n"
AMBIGUOUS = {
    "a length beside chunks": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (5 + len(BEHIND)),
    "chunks beside a length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "a length of nothing beside chunks": b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "small letters, and spaces": b"content-length:  5 \r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n",
    "bare line ends": b"Content-Length: 5\nTransfer-Encoding: chunked\n\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}\n",
    "the same length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "two lengths in one": b"Content-Length: 2, 2\r\n\r\n{}",
    "a list that ends in nothing": b"Content-Length: 2,\r\n\r\n{}",
    "a signed length": b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": b"Content-Length: 0x2\r\n\r\n{}",
    "a length of nothing": b"Content-Length:\r\n\r\n{}",
    "a space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "a length in the next line": b"Content-Length:\r\n 2\r\n\r\n{}",
    "chunks in the next line": b"Content-Length: 5\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
    "a header in the next line": b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "a length hidden in the next line": b"X: a\r\n Content-Length: 9\r\nContent-Length: 2\r\n\r\n{}",
    "chunks twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks that are not": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Generator[Door]:
    with serving(tmp_path_factory.mktemp("plain")) as door:
        yield door


def everything(door: Door, data: bytes) -> bytes:
    """All that the server says until it hangs up."""
    url, answer = httpx.URL(door.http), b""
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        connection.sendall(data)
        while some := connection.recv(1 << 16):
            answer += some
    return answer


@pytest.mark.parametrize("first", [b"", BEHIND], ids=["first", "second"])
@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_request_that_could_be_two_is_refused_and_the_connection_closed(plain: Door, kind: str, first: bytes) -> None:
    """Nothing behind it is answered: what a proxy took for its body could be somebody else's request."""
    head = b"POST /v1/models/unload HTTP/1.1\r\nHost: localhost\r\n"
    answer = everything(plain, first + head + AMBIGUOUS[kind] + BEHIND)
    statuses = [line[:3] for line in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200"] * bool(first) + [b"400"]


def test_chunks_in_the_old_version_are_refused(plain: Door) -> None:
    data = b"POST /v1/models/unload HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert everything(plain, data).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "body",
    [b"content-length: 2\r\n\r\n{}", b"transfer-encoding: Chunked\r\n\r\n2\r\n{}\r\n0\r\nx: y\r\n\r\n"],
    ids=["a length", "chunks"],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_one_length_is_read_however_it_comes(plain: Door, body: bytes, step: int) -> None:
    """In pieces, and with another request behind it."""
    data = (
        b"POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\n"
        + body
        + b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    url, answer = httpx.URL(plain.http), b""
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        for at in range(0, len(data), step):
            connection.sendall(data[at : at + step])
        while some := connection.recv(1 << 16):
            answer += some
    assert [line[:3] for line in answer.split(b"HTTP/1.1 ")[1:]] == [b"422", b"200"]
