"""A packed folder named to a running server: converted once, said so while it loads, and served on both backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from probewire.clients import Client
from probewire.protos import probewire_pb2 as pb
from tests.apis.serving import DEADLINE_S, Served, eventually, serving
from tests.backends.checkpoints.conversion.kinds import KINDS, packer
from tests.backends.checkpoints.conversion.packers import pack_folder


def stages(served: Served, folder: Path, backend: str) -> list[str]:
    """What a load says on its way."""
    request = pb.LoadRequest(model=str(folder), id="packed", backend=backend).SerializeToString()
    answers = served.channel.unary_stream("/probewire.v1.Models/Load")(request, timeout=DEADLINE_S)
    return [pb.LoadProgress.FromString(answer).stage for answer in answers]


@pytest.mark.timeout(120)
def test_it_is_converted_once_and_served(
    checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pack_folder(checkpoint, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"))
    cache = tmp_path / "cache"
    options = ("--cache-dir", str(cache))
    with serving(checkpoint, tmp_path_factory.mktemp("box"), *options, backends=["torch"]) as served:
        assert "convert" in stages(served, tmp_path / "packed", "torch")
        with Client(f"grpc://{served.grpc}") as client:
            torch = client.generate("When Mary", model="packed", max_new_tokens=4, ignore_eos=True).only.new
            first = client.describe("packed").model_hash
            client.unload("packed")
            eventually(lambda: "packed" not in [m.id for m in client.models()], "the model is gone")
            assert "convert" not in stages(served, tmp_path / "packed", "mlx")
            mlx = client.generate("When Mary", model="packed", max_new_tokens=4, ignore_eos=True).only.new
            found = client.describe("packed")
            assert (found.model_hash, found.origin) == (first, "gptq: packed")
            assert client.describe("torch").origin == ""
    assert [token.id for token in torch] == [token.id for token in mlx]
    assert len([path for path in cache.glob("converted/*") if path.is_dir()]) == 1
