"""Encrypted connections, and what is said of those that cannot be had."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from fake_server import FakeServer, ServerTls, wait_for
from fake_service import FakeService

from probewire.clients import Client, InvalidArgument, Unavailable
from probewire.clients.transport.tls import read_tls


@dataclass(frozen=True)
class Files:
    """PEM files: of the CA, of a server and of a client that it signed."""

    ca: Path
    server_cert: Path
    server_key: Path
    cert: Path
    key: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "127.0.0.1"), ("client", "ada@lab.example")):
        issued = ca.issue_cert(identity)
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(folder / f"{name}.pem", append=True)
    return Files(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))


@pytest.fixture(scope="module")
def server(files: Files) -> Iterator[FakeServer]:
    server = FakeServer(FakeService(), tls=ServerTls(files.server_cert, files.server_key))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def strict_server(files: Files) -> Iterator[FakeServer]:
    """Asks for a client's certificate."""
    server = FakeServer(FakeService(), tls=ServerTls(files.server_cert, files.server_key, files.ca))
    yield server
    server.stop()


def urls(server: FakeServer) -> tuple[str, str]:
    return server.grpc_url, server.http_url


def test_a_server_of_a_ca_of_ones_own(server: FakeServer, files: Files) -> None:
    for url in urls(server):
        with Client(url, ca_file=files.ca, timeout_s=20) as client:
            assert client.address == url
            assert client.generate("abc", max_new_tokens=3).text == "def"
            assert client.health().ready


def test_a_stream_is_closed_from_another_thread_there_too(server: FakeServer, files: Files) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def stand_still(index: int) -> None:
        if index == 1:
            waiting.set()
            go_on.wait(20)

    service = server.service
    service.before_step = stand_still
    for url in urls(server):
        waiting.clear()
        go_on.clear()
        with Client(url, ca_file=files.ca, timeout_s=20) as client, ThreadPoolExecutor(1) as pool:
            stream = client.stream("a", max_new_tokens=500)
            try:
                rest = pool.submit(list, stream)
                assert waiting.wait(20)
                assert wait_for(lambda stream=stream: stream.text == "b", 20)
                stream.close()
                assert len(rest.result(20)) == 1
            finally:
                go_on.set()
            assert client.health().ready
    service.before_step = lambda index: None


def test_a_server_that_is_not_trusted(server: FakeServer, files: Files) -> None:
    for url in urls(server):
        with Client(url, timeout_s=20) as client, pytest.raises(Unavailable, match="as ca_file, and a host name"):
            client.models()


def test_a_certificate_for_another_host(server: FakeServer, files: Files) -> None:
    for url in urls(server):
        name = url.replace("127.0.0.1", "localhost")
        with Client(name, ca_file=files.ca, timeout_s=20) as client, pytest.raises(Unavailable, match="no connection"):
            client.models()


def test_a_server_that_asks_for_a_certificate(strict_server: FakeServer, files: Files) -> None:
    for url in urls(strict_server):
        with Client(url, ca_file=files.ca, cert_file=files.cert, key_file=files.key, timeout_s=20) as client:
            assert client.generate("abc", max_new_tokens=3).text == "def"
        with Client(url, ca_file=files.ca, timeout_s=20) as client, pytest.raises(Unavailable):
            client.models()


def test_plain_http_where_tls_is_spoken_and_the_other_way_round(server: FakeServer, files: Files) -> None:
    with Client(server.http_url.replace("https", "http"), timeout_s=20) as client, pytest.raises(Unavailable):
        client.models()
    plain = FakeServer(FakeService())
    try:
        for url in urls(plain):
            secure = url.replace("://", "s://")
            with (
                Client(secure, ca_file=files.ca, timeout_s=20) as client,
                pytest.raises(Unavailable, match="speak TLS"),
            ):
                client.models()
    finally:
        plain.stop()


@pytest.mark.parametrize("url", ["grpc://box", "http://box"])
def test_files_are_of_no_use_without_tls(url: str, files: Files) -> None:
    with pytest.raises(InvalidArgument, match=f"{url[:4]}:// is none; write {url[:4]}s://box"):
        Client(url, ca_file=files.ca)


@pytest.mark.parametrize("url", ["grpcs://box", "https://box"])
def test_files_that_cannot_be_used(url: str, files: Files, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": tmp_path / "nope"}, "cannot read ca_file '.*nope': No such file"),
        ({"ca_file": tmp_path}, "cannot read ca_file .*: Is a directory"),
        ({"ca_file": junk}, "ca_file '.*junk.pem' holds no certificates"),
        ({"cert_file": files.cert}, "give both, or neither"),
        ({"key_file": files.key}, "give both, or neither"),
        ({"cert_file": files.cert, "key_file": files.server_key}, "the key of that certificate"),
        ({"cert_file": junk, "key_file": files.key}, "both must be PEM"),
    ]
    for options, message in cases:
        with pytest.raises(InvalidArgument, match=message):
            Client(url, **options)


def test_a_key_with_a_password_is_refused_and_not_asked_for(files: Files, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key: Any = serialization.load_pem_private_key(files.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    form, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    locked.write_bytes(key.private_bytes(form, kind, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(InvalidArgument, match="without a password"):
        read_tls(None, files.cert, locked)


@pytest.mark.parametrize("url", ["grpc://box.example", "http://10.0.0.1:8000", "grpc://[2001:db8::1]"])
def test_a_key_that_crosses_the_network_in_the_clear_is_warned_of(url: str) -> None:
    with pytest.warns(UserWarning, match="unencrypted, and whoever sees it can use it; write") as caught:
        Client(url, api_key="pw_secret")
    [warning] = caught
    assert warning.filename == __file__
    assert "pw_secret" not in str(warning.message)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("grpcs://box", "pw_x"),
        ("https://box", "pw_x"),
        ("grpc://localhost", "pw_x"),
        ("http://127.0.0.1", "pw_x"),
        ("grpc://[::1]", "pw_x"),
        ("grpc://box", None),
    ],
)
def test_no_warning_where_nobody_can_listen(url: str, key: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Client(url, api_key=key)


@pytest.mark.parametrize("key", ["pw_a b", "pw_a\n", "pw_ä"])
def test_keys_that_no_header_carries(key: str) -> None:
    for url in ("grpc://localhost", "http://localhost"):
        with pytest.raises(InvalidArgument, match="a key looks like pw_") as caught:
            Client(url, api_key=key)
        assert key not in caught.value.message
