"""Folders that are no model: a clear error over gRPC and REST, no worker left behind, and the server goes on."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from probewire.clients import Client
from probewire.protos import probewire_pb2 as pb
from tests.apis.serving import DEADLINE_S, Served, eventually


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "notes.txt").write_text("no model")


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Call()))


class _Call:
    """What a pickle may carry."""

    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


def _missing(folder: Path) -> None:
    shutil.rmtree(folder)


def _unknown_type(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"no_such_architecture"'))


FOLDERS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no model": (_empty, "INVALID_ARGUMENT", "is not a checkpoint folder: it has no config.json"),
    "truncated": (_truncated, "INVALID_ARGUMENT", "model.safetensors is cut short: "),
    "pickles": (
        _pickle_only,
        "INVALID_ARGUMENT",
        "holds other things than tensors, and nothing in it was run",
    ),
    "missing": (_missing, "NOT_FOUND", "there is no"),
    "unknown architecture": (_unknown_type, "INVALID_ARGUMENT", "is not known to the installed transformers"),
}
"""What is done to a good checkpoint, and the refusal."""


@pytest.mark.parametrize("name", FOLDERS)
def test_it_is_refused_and_the_server_goes_on(served: Served, tmp_path: Path, name: str) -> None:
    spoil, expected, why = FOLDERS[name]
    folder = tmp_path / "spoilt"
    shutil.copytree(served.folder, folder)
    spoil(folder)
    workers = psutil.Process(served.pid).children()

    request = pb.LoadRequest(model=str(folder), id="spoilt", backend="torch").SerializeToString()
    with pytest.raises(grpc.RpcError) as raised:
        list(served.channel.unary_stream("/probewire.v1.Models/Load")(request, timeout=DEADLINE_S))
    assert raised.value.code().name == expected
    assert why in (raised.value.details() or "")

    body = {"model_path": str(folder), "model_id": "spoilt", "backend": "mlx"}
    response = served.web.post("/v1/models/load", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422 if expected == "INVALID_ARGUMENT" else 404, expected)
    assert why in error["message"]

    assert [found["id"] for found in served.web.get("/v1/models").json()["data"]] == ["torch", "mlx"]
    eventually(lambda: psutil.Process(served.pid).children() == workers, "the failed worker is gone")
    with Client(f"grpc://{served.grpc}") as client:
        for model in ("torch", "mlx"):
            assert len(client.generate("When Mary", model=model, max_new_tokens=2, ignore_eos=True).only.new) == 2
