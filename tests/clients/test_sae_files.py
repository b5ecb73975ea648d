"""An SAE's files on their way to a server: in one request or in parts, gone on with where the server says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fake_service import FakeService

from probewire.clients import Client, InvalidArgument, ResourceExhausted, Unavailable, sending as module
from probewire.protos.saes import SaePart, SaeReceived
from tests.saes import write_sae


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "PART_BYTES", 20_000)
    return write_sae(tmp_path / "planets")  # 50 kB


def weights(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


def test_large_weights_go_in_parts(client: Client, service: FakeService, folder: Path) -> None:
    client.load_sae(folder, upload=True)
    data = weights(folder)
    assert bytes(service.sent) == data
    assert [(part.offset, len(part.data)) for part in service.sae_parts] == [
        (0, 0), (0, 20_000), (20_000, 20_000), (40_000, len(data) - 40_000),
    ]  # fmt: skip
    files = service.sae_requests[-1].files
    assert files is not None
    assert (files.upload, files.weights) == (hashlib.sha256(data).hexdigest(), b"")


def test_what_the_server_has_is_not_sent_again(client: Client, service: FakeService, folder: Path) -> None:
    service.sent += weights(folder)[:30_000]
    client.load_sae(folder, upload=True)
    assert [part.offset for part in service.sae_parts] == [0, 30_000, 50_000]
    assert bytes(service.sent) == weights(folder)


def test_small_weights_go_along(
    client: Client, service: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 100_000)
    client.load_sae(folder, upload=True)
    files = service.sae_requests[-1].files
    assert files is not None
    assert (files.weights, service.sae_parts) == (weights(folder), [])


def test_a_server_that_loses_what_it_gets_is_not_sent_to_for_ever(
    client: Client, service: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(part: SaePart) -> SaeReceived:
        service.sae_parts.append(part)
        return SaeReceived(10)

    monkeypatch.setattr(service, "send_sae", lost)
    with pytest.raises(
        Unavailable, match=r"the server keeps 10 of sae_weights.safetensors's [\d,]+ bytes; send it again"
    ):
        client.load_sae(folder, upload=True)
    assert len(service.sae_parts) < 9


def test_a_server_that_takes_less_gets_smaller_parts(
    client: Client, service: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = service.send_sae

    def small(part: SaePart) -> SaeReceived:
        if len(part.data) > most:
            raise ResourceExhausted(f"a request has at most {most} bytes")
        return kept(part)

    monkeypatch.setattr(service, "send_sae", small)
    monkeypatch.setattr(module, "LEAST_BYTES", 3_000)
    most = 6_000
    client.load_sae(folder, upload=True)
    assert bytes(service.sent) == weights(folder)
    most = 1_000
    service.sent.clear()
    with pytest.raises(ResourceExhausted, match="at most 1000 bytes"):
        client.load_sae(folder, upload=True)


def test_a_file_that_shrinks_while_it_is_sent(
    client: Client, service: FakeService, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = service.send_sae

    def shrinking(part: SaePart) -> SaeReceived:
        (folder / "sae_weights.safetensors").write_bytes(bytes(10))
        return kept(part)

    monkeypatch.setattr(service, "send_sae", shrinking)
    with pytest.raises(InvalidArgument, match=r"sae_weights\.safetensors changed while it was sent"):
        client.load_sae(folder, upload=True)


def test_a_pickle_and_nothing_at_all(client: Client, tmp_path: Path) -> None:
    (tmp_path / "sae.pt").write_bytes(b"x")
    for name, kind in (("sae.pt", "is a file"), ("none", "is not there")):
        with pytest.raises(
            InvalidArgument, match=rf"{name} {kind}; give the folder .* pickles \(.pt\) are never opened"
        ):
            client.load_sae(tmp_path / name, upload=True)


def test_no_weights(client: Client, folder: Path) -> None:
    (folder / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(InvalidArgument, match=r"sae_weights.safetensors is empty"):
        client.load_sae(folder, upload=True)
