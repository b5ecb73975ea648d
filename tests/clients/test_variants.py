"""Variants over every transport: sent whole or in parts, fetched back, written."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import fake_service as fakes
import numpy as np
import pytest
from fake_service import FakeService

from probewire.clients import AsyncClient, Client, Delta, InvalidArgument, NotFound, Variant, sending
from probewire.protos.model_info import WeightInfo


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended model takes a delta at one weight."""
    told = fakes.FakeService.describe
    table = (WeightInfo("w_o.0", "model.layers.0.self_attn.o_proj", 64, 64),)
    monkeypatch.setattr(
        fakes.FakeService,
        "describe",
        lambda self, model="": replace(told(self, model), weights=table, model_hash="hash"),
    )


def made(seed: int = 0) -> Variant:
    rng = np.random.default_rng(seed)
    return Variant({"w_o.0": Delta(rng.normal(size=(64, 4)), rng.normal(size=(4, 64)))})


def test_there_and_back(client: Client, service: FakeService, tmp_path: Path) -> None:
    info = client.load_variant(made(), name="formal", shared=True)
    assert (info.name, info.shared, client.variants(), client.variant("formal")) == ("formal", True, [info], info)
    [request] = service.kept.requests
    assert {file.name for file in request.files} == {"variant.json", "adapter_config.json", "adapter_model.safetensors"}
    back = client.fetch_variant("formal", tmp_path / "v", progress=False)
    assert back.hash == info.hash
    assert back.deltas == made().deltas
    assert Variant.load(tmp_path / "v") == back
    client.load_variant(tmp_path / "v", name="formal", shared=True)
    assert len(service.kept.requests) == 1  # it is there already, under this name
    client.unload_variant("formal")
    with pytest.raises(NotFound):
        client.fetch_variant("formal")


def test_large_files_go_in_parts(client: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PART_BYTES", 1500)
    info = client.load_variant(made(), name="big", progress=False)
    [request] = service.kept.requests
    assert [bool(file.upload) for file in sorted(request.files, key=lambda file: file.name)] == [False, True, False]
    assert client.fetch_variant("big", progress=False).hash == info.hash


def test_a_folder_gives_its_name_and_a_source_stays_one(client: Client, service: FakeService, tmp_path: Path) -> None:
    folder = made(1).save(tmp_path / "paris-lyon")
    assert client.load_variant(folder).name == "paris-lyon"
    client.load_variant("org/adapter", name="x")
    assert service.kept.requests[-1].source == "org/adapter"
    client.load_variant(folder, name="y", upload=False)
    assert service.kept.requests[-1].source == str(folder)


def test_what_does_not_fit_is_told_before_it_is_sent(client: Client, service: FakeService) -> None:
    with pytest.raises(InvalidArgument, match=r"no delta at w_o\.9; the nearest are w_o\.0"):
        client.load_variant(Variant({"w_o.9": made().deltas["w_o.0"]}), name="x")
    with pytest.raises(InvalidArgument, match=r"give one \(name=…\)"):
        client.load_variant(made())
    with pytest.raises(InvalidArgument, match="1 to 64 letters"):
        client.load_variant(made(), name="a/b")
    assert not service.kept.requests


def test_the_async_client_has_them_too(service: FakeService) -> None:
    async def scenario() -> None:
        async with AsyncClient(service=service) as client:
            info = await client.load_variant(made(), name="formal")
            assert [item.hash for item in await client.variants()] == [info.hash]
            assert (await client.fetch_variant("formal", progress=False)).hash == info.hash
            await client.unload_variant("formal")

    asyncio.run(scenario())
