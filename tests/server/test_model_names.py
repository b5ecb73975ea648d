"""`[ID=]MODEL[@BACKEND]`, wherever a model is named."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from serving import gateway

from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.loading import LoadRequest
from probewire.server.gateway.gateway import Gateway
from probewire.server.model_names import default_id, parsed


@pytest.mark.parametrize(
    ("asked", "model", "name", "backend"),
    [
        (LoadRequest("org/name"), "org/name", "", "auto"),
        (LoadRequest("org/name@mlx"), "org/name", "", "mlx"),
        (LoadRequest("org/name@auto"), "org/name", "", "auto"),
        (LoadRequest("m=org/name@torch"), "org/name", "m", "torch"),
        (LoadRequest("m=name", id="m"), "name", "m", "auto"),
        (LoadRequest("name@mlx", id="m", backend="mlx"), "name", "m", "mlx"),
        (LoadRequest("name", id="m", backend="mlx"), "name", "m", "mlx"),
        (LoadRequest("m=@mlx"), "", "m", "mlx"),
        (LoadRequest("/some/a=b"), "/some/a=b", "", "auto"),
        (LoadRequest("name@jax"), "name@jax", "", "auto"),
        (LoadRequest(""), "", "", "auto"),
    ],
)
def test_a_name_is_read_part_by_part(asked: LoadRequest, model: str, name: str, backend: str) -> None:
    assert parsed(asked) == LoadRequest(model, name, backend)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (LoadRequest("name@mlx", backend="torch"), "'name@mlx' says backend 'mlx', and backend='torch' was given"),
        (LoadRequest("m=name", id="n"), "'m=name' says id 'm', and id='n' was given beside it; give one"),
    ],
)
def test_what_is_said_twice_and_differs_is_refused(asked: LoadRequest, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parsed(asked)


def test_a_folder_is_itself_whatever_its_name(tmp_path: Path) -> None:
    for name in ("tiny@mlx", "a=b", "a=b@torch"):
        folder = tmp_path / name
        folder.mkdir()
        assert parsed(LoadRequest(str(folder))) == LoadRequest(str(folder))
        assert parsed(LoadRequest(f"m={folder}")) == LoadRequest(str(folder), "m")
        assert parsed(LoadRequest(f"m={folder}@torch")) == LoadRequest(str(folder), "m", "torch")
        assert default_id(str(folder)) == name


def test_a_load_takes_the_words_of_serve() -> None:
    async def load(it: Gateway, text: str, **given: Any) -> tuple[str, str, str]:
        [*_, last] = [step async for step in it.load(LoadRequest(text, **given))]
        assert last.info is not None
        found = it.workers[last.info.id].config
        return last.info.id, found.model, found.backend

    async def scenario() -> None:
        async with asyncio.timeout(60), gateway() as (it, _):
            assert await load(it, "fake@mlx") == ("fake", "fake", "mlx"), "as `probewire serve fake@mlx`"
            assert await load(it, "fake@mlx") == ("fake", "fake", "mlx"), "which joins it"
            assert await load(it, "fake@torch") == ("fake@torch", "fake", "torch"), "as if both had been served"
            assert await load(it, "fake", backend="torch") == ("fake@torch", "fake", "torch")
            assert await load(it, "x=fake@mlx") == ("x", "fake", "mlx")
            assert list(it.workers) == ["fake", "fake@torch", "x"]
            with pytest.raises(FailedPrecondition, match="id 'x' is taken by 'fake'"):
                await load(it, "x=fake@torch")
            with pytest.raises(InvalidArgument, match="give one"):
                await load(it, "fake@mlx", backend="torch")

    asyncio.run(scenario())


def test_a_folder_is_served_under_its_last_part_and_a_hub_id_under_itself(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert default_id(f"{tmp_path}/tiny/") == "tiny"
    assert default_id("org/name") == "org/name"
    assert default_id("") == default_id("smollm2-135m-instruct") == "SmolLM2-135M-Instruct"
