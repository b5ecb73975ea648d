"""Control vectors in GGUF: the layers, signs and strengths of llama.cpp and repeng.

repeng 0.4.0 itself, in an environment of its own, gave the same logits to the bit for a vector that it exported, and read
back what is written here; its calls of `gguf` are made below. What both do with a direction is done by a hook on
transformers' own block.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probewire.clients import Client, FailedPrecondition, InvalidArgument, NotFound, SteeringVector, steer
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

IDS = [256, 5, 77, 30, 8, 9]
RNG = np.random.default_rng(3)
DIRECTIONS = {layer: RNG.normal(size=64).astype(np.float32) for layer in (1, 2)}


def as_repeng_writes(path: Path, directions: dict[int, Any], hint: str = "llama", arch: str = "controlvector") -> Path:
    writer: Any = gguf.GGUFWriter(path, arch)
    writer.add_string(f"{arch}.model_hint", hint)
    writer.add_uint32(f"{arch}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(layer if isinstance(layer, str) else f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def controlled(folder: Path, strength: float) -> Any:
    """Logits of transformers' model with strength · direction.N added to the output of `model.layers[N]`."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for layer, direction in DIRECTIONS.items():
        shift = strength * torch.tensor(direction, dtype=torch.float64)
        model.model.layers[layer].register_forward_hook(
            lambda _module, _args, output, shift=shift: (
                (output[0] + shift, *output[1:]) if isinstance(output, tuple) else output + shift
            )
        )
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="module")
def llama(folder: Path) -> Client:
    return Client.inprocess(InProcessService.create(str(folder), dtype="float64", device="cpu"))


@pytest.mark.parametrize("strength", [2.5, -1.0])
def test_a_direction_acts_after_the_block_of_its_number(
    llama: Client, folder: Path, tmp_path: Path, strength: float
) -> None:
    vector = SteeringVector.from_gguf(as_repeng_writes(tmp_path / "v.gguf", DIRECTIONS), llama.describe())
    assert vector.sites == ("resid_post.1", "resid_post.2")
    assert (vector.model_hash, vector.details["model_hint"]) == (llama.describe().model_hash, "llama")
    expected = controlled(folder, strength)
    found = llama.run(IDS, hooks=steer(vector, strength), capture="logits")["logits"]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # transformers' norms are float32 all the same
    for shift in (-1, 1):
        moved = SteeringVector({f"resid_post.{n + shift}": v for n, v in DIRECTIONS.items() if n + shift < 3})
        other = llama.run(IDS, hooks=steer(moved, strength), capture="logits")["logits"]
        assert np.abs(other - expected).max() > 0.1, "one layer off is another model"


def test_written_and_read(llama: Client, tmp_path: Path) -> None:
    vector = SteeringVector({f"resid_post.{n}": v for n, v in DIRECTIONS.items()}, made="by hand")
    path = vector.to_gguf(tmp_path / "w.gguf", llama.describe())
    reader: Any = gguf.GGUFReader(path)
    assert {tensor.name: tensor.data.tolist() for tensor in reader.tensors} == {
        f"direction.{n}": v.tolist() for n, v in DIRECTIONS.items()
    }
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert (fields["controlvector.model_hint"], fields["controlvector.layer_count"]) == ("llama", 2)
    again = SteeringVector.from_gguf(path)
    assert (again.made, again.model_hash, again.sites) == ("by hand", "", vector.sites)
    for site in vector.sites:
        np.testing.assert_array_equal(again.directions[site], vector.directions[site])
    assert [p.name for p in tmp_path.iterdir()] == ["w.gguf"]


def test_what_has_no_place_in_one(llama: Client, tmp_path: Path) -> None:
    for site, direction in (("resid_post.0", np.ones(64)), ("resid_mid.1", np.ones(64)), ("z.1", np.ones((4, 16)))):
        vector = SteeringVector({"resid_post.1": np.ones(64), site: direction})
        with pytest.raises(
            InvalidArgument, match=rf"{site} has no place in a control vector, which acts after blocks 1, 2"
        ):
            vector.to_gguf(tmp_path / "v.gguf", "llama")
    other = SteeringVector({"resid_post.1": np.ones(64)}, "elsewhere", "fff")
    with pytest.raises(FailedPrecondition, match=r"made on elsewhere \(fff\), not on"):
        other.to_gguf(tmp_path / "v.gguf", llama.describe())
    assert list(tmp_path.iterdir()) == []


def test_of_another_model_it_is_refused(llama: Client, tmp_path: Path) -> None:
    info = llama.describe()
    qwen = as_repeng_writes(tmp_path / "qwen.gguf", DIRECTIONS, "qwen2")
    with pytest.raises(FailedPrecondition, match=r"says that it is for a 'qwen2', and .* is a 'llama'.*any_model=True"):
        SteeringVector.from_gguf(qwen, info)
    assert SteeringVector.from_gguf(qwen, info, any_model=True).model_hash == info.model_hash
    assert SteeringVector.from_gguf(qwen).details["model_hint"] == "qwen2"
    mistral = replace(info, architecture="mistral")  # which llama.cpp calls llama, as our family does
    assert SteeringVector.from_gguf(as_repeng_writes(tmp_path / "llama.gguf", DIRECTIONS), mistral).model == info.id
    for name, directions in (("wide", {1: np.ones(32, np.float32)}), ("deep", {3: np.ones(64, np.float32)})):
        path = as_repeng_writes(tmp_path / f"{name}.gguf", directions)
        with pytest.raises(InvalidArgument, match=r"is 64 wide and has layers 0 … 2: it is of another model"):
            SteeringVector.from_gguf(path, info, any_model=True)


def test_a_first_block_of_repengs(llama: Client, tmp_path: Path) -> None:
    """repeng can train one and writes it; llama.cpp passes it over."""
    path = as_repeng_writes(tmp_path / "v.gguf", {0: DIRECTIONS[1], **DIRECTIONS})
    assert SteeringVector.from_gguf(path, llama.describe()).sites == ("resid_post.0", "resid_post.1", "resid_post.2")


def test_other_files(tmp_path: Path) -> None:
    ones = np.ones(64, np.float32)
    (tmp_path / "junk").write_bytes(b"junk" * 20)
    (tmp_path / "empty").write_bytes(b"")
    model = as_repeng_writes(tmp_path / "model.gguf", {1: ones}, arch="llama")
    for path, why in (
        (tmp_path / "junk", "is not a GGUF file"),
        (tmp_path / "empty", "is not a GGUF file"),
        (model, "holds no control vector: its architecture is 'llama'"),
        (as_repeng_writes(tmp_path / "named.gguf", {"direction.x": ones}), "tensor 'direction.x'"),
        (as_repeng_writes(tmp_path / "more.gguf", {"token_embd.weight": ones}), "is no direction.N of one axis"),
        (as_repeng_writes(tmp_path / "flat.gguf", {1: np.ones((2, 64), np.float32)}), r"of shape \[2, 64\]"),
        (as_repeng_writes(tmp_path / "none.gguf", {}), "holds no directions"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            SteeringVector.from_gguf(path)
    with pytest.raises(NotFound, match="no file"):
        SteeringVector.from_gguf(tmp_path / "nothing")
