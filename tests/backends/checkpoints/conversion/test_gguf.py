"""A GGUF file gives the model it was written from: the same weights and the same logits, or a refusal in words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from probewire.backends.checkpoints import inspect_folder, resolve_model
from probewire.backends.checkpoints.conversion import gguf_header
from probewire.backends.checkpoints.conversion.gguf import write_gguf_folder
from probewire.backends.checkpoints.conversion.gguf_header import read_header
from probewire.backends.checkpoints.progress import Progress
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from tests.backends.checkpoints.conversion.gguf_files import MODELS, PLAIN_VOCABULARY, tiny_model, write_gguf
from tests.parity.harness import load, relative_error, run

TOKENS = torch.arange(3, 43)[None] * 5 % 251  # past every window


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, **changes: Any) -> Path:
        return write_gguf(tmp_path / f"{name}.gguf", tiny_model(name), MODELS[name][0], **changes)

    return write


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", MODELS)
def test_the_model_comes_back(written: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source, out = written(name), tmp_path / "out"
    write_gguf_folder(source, out)
    assert inspect_folder(out).config["model_type"]
    before = tiny_model(name)
    models: Any = AutoModelForCausalLM
    after, told = models.from_pretrained(out, attn_implementation="eager", output_loading_info=True)
    assert not told["missing_keys"] | told["unexpected_keys"]
    for key, value in before.state_dict().items():
        found = after.state_dict()[key]
        if "norm" in key and name.startswith("gemma"):  # 1 was added in float32, and taken away again
            assert torch.allclose(value, found, atol=2e-7), key
        else:
            assert torch.equal(value, found), key
    scale = _logits(before).abs().max()
    assert (_logits(before) - _logits(after.eval())).abs().max() / scale < (1e-5 if name.startswith("gemma") else 1e-7)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("moe")])
def test_transformers_own_reader_has_the_same_weights(written: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source = written(name)
    write_gguf_folder(source, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = load_gguf_checkpoint(source, return_tensors=True, model_to_load=tiny_model(name))["tensors"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_packed_weights_are_unpacked_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(gguf_header, "_AT_ONCE_BYTES", 300)
    values = np.random.default_rng(0).normal(size=(3, 7, 64)).astype(np.float32)
    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("one.weight", packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "one.gguf")
    [tensor] = header.tensors
    assert tensor.shape == values.shape
    expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(header.weight(tensor), expected)


def test_half_precision_is_written_when_asked_for(written: Callable[..., Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    write_gguf_folder(written("llama"), tmp_path / "out", seen.append, dtype="bfloat16")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    full = tiny_model("llama").state_dict()
    assert all(torch.equal(weights[key], full[key].bfloat16()) for key in weights)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert seen[-1].done == seen[-1].total
    with pytest.raises(InvalidArgument, match="allowed: auto, float32, float16, bfloat16"):
        write_gguf_folder(tmp_path, tmp_path / "out", dtype="int8")


def test_several_ends_of_an_answer(written: Callable[..., Path], tmp_path: Path) -> None:
    write_gguf_folder(written("qwen2", vocabulary={**PLAIN_VOCABULARY, "eot_token_id": 260}), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [2, 260]


def test_deep_gemmas_divide_by_another_number(tmp_path: Path) -> None:
    """The 27B: 62 layers, 5376 wide, 32 heads of 128, divided by √168."""
    from probewire.backends.checkpoints.conversion.gguf_config import config_of

    model = tiny_model("gemma3_text")
    source = write_gguf(tmp_path / "deep.gguf", model, "gemma3", block_count=62, embedding_length=96)
    assert config_of(read_header(source))["query_pre_attn_scalar"] == 24
    source = write_gguf(tmp_path / "deep.gguf", model, "gemma3", block_count=62, embedding_length=72)
    assert config_of(read_header(source))["query_pre_attn_scalar"] == 18
    source = write_gguf(tmp_path / "told.gguf", model, "gemma3", attention__scale=0.25)
    assert config_of(read_header(source))["query_pre_attn_scalar"] == 16


def test_a_file_cut_anywhere_is_told(written: Callable[..., Path], tmp_path: Path) -> None:
    whole = written("qwen3").read_bytes()
    cut = tmp_path / "cut.gguf"
    header = read_header(tmp_path / "qwen3.gguf")
    data = min(tensor.start for tensor in header.tensors)
    for n in [0, 3, 4, 7, 20, *range(24, data, 331), data + 1, len(whole) - 64]:
        cut.write_bytes(whole[:n])
        with pytest.raises(InvalidArgument, match=r"cut off|no GGUF file") as caught:
            write_gguf_folder(cut, tmp_path / "out")
        assert caught.value.message.count("cut.gguf") == 1, "told once"
    assert not (tmp_path / "out").exists()


def test_bytes_that_lie_are_told(written: Callable[..., Path], tmp_path: Path) -> None:
    """Whatever a header claims: an error in words, and no memory for it."""
    whole = bytearray(written("llama").read_bytes())
    spoilt = tmp_path / "spoilt.gguf"
    rng = np.random.default_rng(0)
    for _ in range(300):
        copy = bytearray(whole)
        at = int(rng.integers(4, 6000))
        copy[at : at + 8] = rng.choice([b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\0" * 8, rng.bytes(8)])
        spoilt.write_bytes(copy)
        try:
            header = read_header(spoilt)
        except (InvalidArgument, FailedPrecondition):
            continue
        assert header.architecture


def test_files_that_are_no_whole_model(written: Callable[..., Path], tmp_path: Path) -> None:
    source = written("llama")
    projector = write_gguf(tmp_path / "mmproj-x.gguf", tiny_model("llama"), "llama", general__type="mmproj")
    with pytest.raises(InvalidArgument, match="reads images"):
        write_gguf_folder(projector, tmp_path / "out")
    alone = tmp_path / "alone"
    alone.mkdir()
    os.link(projector, alone / projector.name)
    with pytest.raises(InvalidArgument, match=r"mmproj-x.gguf alone, which is the part that reads images"):
        write_gguf_folder(alone, tmp_path / "out")
    os.link(source, alone / "model.gguf")
    write_gguf_folder(alone, tmp_path / "beside")  # the projector is left aside
    os.link(source, alone / "other.gguf")
    with pytest.raises(InvalidArgument, match=r"2 GGUF files \(model.gguf, other.gguf\); give the path"):
        write_gguf_folder(alone, tmp_path / "out")
    split = tmp_path / "split"
    split.mkdir()
    for i in (1, 2):
        os.link(source, split / f"m-0000{i}-of-00002.gguf")
    with pytest.raises(InvalidArgument, match=r"llama-gguf-split --merge m-00001-of-00002\.gguf"):
        write_gguf_folder(split, tmp_path / "out")
    half = tmp_path / "half.gguf"
    write_gguf(half, tiny_model("llama"), "llama")
    _with_key(half, "split.count", 2)
    with pytest.raises(InvalidArgument, match="one of 2 parts"):
        write_gguf_folder(half, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match=r"no \.gguf file"):
        write_gguf_folder(tmp_path / "empty", tmp_path / "out")


def _with_key(path: Path, key: str, value: int) -> None:
    """A file's header alone, with one more key."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attention__temperature": 2.0}, r"attention.temperature = 2.0"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, "stretches positions by 'yarn'"),
        ({"rope__dimension_count": 8}, "8 rotated coordinates"),
        ({"attention__value_length": 8}, "values of 8"),
        ({"attention__head_count_kv": [2, 2, 1]}, "layer by layer"),
        ({"expert_count": 8}, "expert_count = 8"),
        ({"block_count": 4}, "lacks 9 tensors, blk.3.attn_k.weight first"),
        ({"block_count": 2}, "blk.2.attn_k.weight, for which a llama checkpoint of 2 layers has no place"),
    ],
)
def test_what_is_not_understood_is_refused(
    written: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        write_gguf_folder(
            written("llama", **{key.replace("__", "."): value for key, value in changes.items()}), tmp_path / "out"
        )


def test_other_architectures_are_named(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama")
    source.write_bytes(source.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(
        InvalidArgument, match=r"'mamba', which is not read from GGUF; read are gemma2, gemma3, gpt2, llama"
    ):
        write_gguf_folder(source, tmp_path / "out")


def test_other_ropes_than_llama_3s_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.backends.checkpoints.conversion import gguf_files

    monkeypatch.setattr(gguf_files, "_llama3_divisors", lambda rope, d: np.linspace(1, 3, d // 2, dtype=np.float32))
    source = write_gguf(tmp_path / "m.gguf", tiny_model("llama_llama3"), "llama")
    with pytest.raises(InvalidArgument, match="divides its rotary frequencies by other numbers"):
        write_gguf_folder(source, tmp_path / "out")


def test_the_tokenizer_begins_a_text_as_the_file_says(written: Callable[..., Path], tmp_path: Path) -> None:
    write_gguf_folder(written("qwen2"), tmp_path / "out")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens(tokenizer(" the").input_ids) == ["<bos>", "Ġthe"]
    plain = {key: value for key, value in PLAIN_VOCABULARY.items() if key != "add_bos_token"}
    write_gguf_folder(written("qwen2", vocabulary=plain), tmp_path / "none")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "none")
    assert tokenizer.convert_ids_to_tokens(tokenizer("<eos> the").input_ids) == ["<eos>", "Ġthe"]
    assert tokenizer.eos_token == "<eos>"


def test_a_file_is_a_model_by_its_path_and_written_once(written: Callable[..., Path], tmp_path: Path) -> None:
    source, cache = written("qwen3"), tmp_path / "cache"
    seen: list[Progress] = []
    first = resolve_model(str(source), cache_dir=cache, progress=seen.append)
    assert "dequantise" in {progress.stage for progress in seen}
    seen.clear()
    again = resolve_model(str(source), cache_dir=cache, progress=seen.append)
    assert "dequantise" not in {progress.stage for progress in seen}
    assert (again.folder, again.model_hash) == (first.folder, first.model_hash)
    expected = _logits(tiny_model("qwen3"))[0].numpy()
    for name in ("torch", "mlx"):
        backend = load(name, first.folder)
        found = run(backend, TOKENS[0].tolist(), Plan((Hook("logits", capture=Capture()),)))
        backend.close()
        assert relative_error(found[0, "logits", ""].values, expected) <= 1e-4
