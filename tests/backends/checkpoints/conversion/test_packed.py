"""What packed folders mean: every format, number by number, on both backends, and every lie about it refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probewire.backends import load_backend
from probewire.backends.checkpoints import resolve_model
from probewire.backends.checkpoints.conversion.source import FileTensors
from probewire.backends.model.limits import Limits
from probewire.protos.errors import InvalidArgument, ProbewireError, Unsupported
from probewire.protos.spec import Capture, Hook, Plan
from tests.backends.checkpoints.conversion.kinds import KINDS, packer
from tests.backends.checkpoints.conversion.packers import pack_folder
from tests.parity.harness import run

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
TOKENS = list(range(20, 40))
TOLERANCE = 1e-6
"""Of logits, beside the model that has the meant weights from the start: the same floats go through the same code."""


def logits(name: str, folder: Path) -> np.ndarray[Any, Any]:
    backend = load_backend(name, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu", check=False)
    try:
        return run(backend, TOKENS, Plan((Hook("logits", capture=Capture()),)))[0, "logits", ""].values
    finally:
        backend.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_folder_means_what_its_format_says(kind: str, plain: Path, tmp_path: Path, cache: Path) -> None:
    meant = pack_folder(plain, tmp_path / "packed", KINDS[kind][0], packer(kind))
    found = resolve_model(str(tmp_path / "packed"), cache_dir=cache)
    weights = load_file(found.folder / "model.safetensors")
    assert weights.keys() == meant.keys()
    for name, weight in meant.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], weight, err_msg=name)
    config = json.loads((found.folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert found.model_id == "packed"


@pytest.mark.parametrize("kind", ["gptq activation order", "awq", "int4 asymmetric", "fp8 channels", "nvfp4"])
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_it_computes_as_the_model_with_those_weights(
    name: str, kind: str, plain: Path, tmp_path: Path, cache: Path
) -> None:
    meant = pack_folder(plain, tmp_path / "packed", KINDS[kind][0], packer(kind))
    shutil.copytree(plain, tmp_path / "meant")
    save_file(meant, tmp_path / "meant" / "model.safetensors", metadata={"format": "pt"})
    expected = logits(name, tmp_path / "meant")
    found = logits(name, resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert np.abs(expected - logits(name, plain)).max() > 0.01 * np.abs(expected).max(), "the packed weights were used"


@pytest.mark.parametrize(("dtype", "kind"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_values_are_computed_in_float32_and_rounded_once(
    dtype: str, kind: Any, plain: Path, tmp_path: Path, cache: Path
) -> None:
    meant = pack_folder(plain, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"), dtype=dtype)
    found = FileTensors.of(resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder)
    name = "model.layers.1.mlp.down_proj.weight"
    np.testing.assert_array_equal(found.get(name), meant[name].astype(kind))
    assert found.get("model.norm.weight").dtype == np.float32, "what was never packed stays as it is"


def test_zeros_of_nothing_borrow_as_their_writers_do(plain: Path, tmp_path: Path, cache: Path) -> None:
    """GPTQModel takes one from whole words, so that a zero of 0 borrows from the next field; adding it back undoes that."""
    meant = pack_folder(plain, tmp_path / "packed", {**KINDS["gptq v2"][0]}, packer("gptq v2"))
    weights = load_file(tmp_path / "packed" / "model.safetensors")
    for name in [name for name in weights if name.endswith(".qzeros")]:
        words = weights[name].view(np.uint32).copy()
        words[0, 0] &= ~np.uint32(0xF0)  # the second output's zero is 0
        linear, codes = name.removesuffix(".qzeros"), weights[name.replace("qzeros", "qweight")][:, 1].view(np.uint32)
        group = weights[f"{linear}.g_idx"] == 0
        unpacked = np.array([(int(word) >> shift) & 15 for word in codes for shift in range(0, 32, 4)])
        scale = weights[f"{linear}.scales"][0, 1].astype(np.float32)
        meant[f"{linear}.weight"][1, group] = (scale * unpacked.astype(np.float32))[group]
        weights[name] = (words - np.uint32(0x11111111)).view(np.int32)
    save_file(weights, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq"
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    found = load_file(resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder / "model.safetensors")
    for name, weight in meant.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_gptq_of_gpt2_keeps_its_matrices_turned(tmp_path: Path, cache: Path) -> None:
    """transformers stores gpt2's matrices [in, out]."""
    from tests.tiny_models import tiny_checkpoint

    gpt2 = tiny_checkpoint("gpt2", tmp_path, n_layer=1)
    weights = load_file(gpt2 / "model.safetensors")
    pack, meant, stored = packer("gptq 4 bits"), dict[str, Any](), dict[str, Any]()
    for name, weight in weights.items():
        if ".attn.c" not in name or not name.endswith(".weight"):
            meant[name] = stored[name] = weight
            continue
        packed = pack(*weight.shape[::-1])
        meant[name] = packed.weight.T
        stored |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in packed.parts.items()}
    shutil.copytree(gpt2, tmp_path / "packed")
    save_file(stored, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((gpt2 / "config.json").read_text())
    config["quantization_config"] = KINDS["gptq 4 bits"][0]
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    found = load_file(resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder / "model.safetensors")
    for name, weight in meant.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def test_the_first_writers_names(plain: Path, tmp_path: Path, cache: Path) -> None:
    """One file named after the method, and quantize_config.json in place of the config's own words."""
    meant = pack_folder(plain, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"))
    folder = tmp_path / "packed"
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-16g.safetensors")
    config = json.loads((folder / "config.json").read_text())
    old = {name: value for name, value in config.pop("quantization_config").items() if name != "quant_method"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(old))
    found = load_file(resolve_model(str(folder), cache_dir=cache).folder / "model.safetensors")
    np.testing.assert_array_equal(
        found["model.layers.0.mlp.up_proj.weight"], meant["model.layers.0.mlp.up_proj.weight"]
    )


def test_biases_of_zeros_that_an_old_writer_added_are_left_out(plain: Path, tmp_path: Path, cache: Path) -> None:
    """AutoGPTQ gave every matrix a bias; llama has no place for them. One kind that is in use somewhere stays."""
    pack_folder(plain, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"))
    weights = load_file(tmp_path / "packed" / "model.safetensors")
    zeros = {
        name.replace("scales", "bias"): np.zeros(a.shape[1], a.dtype) for name, a in weights.items() if "scales" in name
    }
    used = {**zeros, "model.layers.1.self_attn.q_proj.bias": np.ones(64, np.float16)}
    some = {name: bias for name, bias in zeros.items() if "q_proj" in name}
    both_layers = {f"model.layers.{i}.self_attn.q_proj.bias" for i in (0, 1)}
    for biases, kept in ((zeros, set[str]()), (used, both_layers), (some, both_layers)):
        save_file(weights | biases, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
        found = load_file(resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder / "model.safetensors")
        assert {name for name in found if name.endswith(".bias")} == kept


Change = Callable[[dict[str, Any], dict[str, Any]], None]
"""Of the quantization_config and the tensors of a sound folder."""


def _set(**fields: Any) -> Change:
    return lambda config, _: config.update(fields)


def _drop(ending: str) -> Change:
    def change(_: dict[str, Any], weights: dict[str, Any]) -> None:
        for name in [name for name in weights if name.endswith(ending)]:
            del weights[name]

    return change


def _shorter(ending: str) -> Change:
    def change(_: dict[str, Any], weights: dict[str, Any]) -> None:
        for name in [name for name in weights if name.endswith(ending)]:
            weights[name] = weights[name][:-1].copy()

    return change


def _plain(config: dict[str, Any], weights: dict[str, Any]) -> None:
    """The tensors are those of the unquantised model after all."""
    for name in [name for name in weights if ".layers." in name and "norm" not in name]:
        del weights[name]


def _twice(_: dict[str, Any], weights: dict[str, Any]) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = np.zeros((96, 64), np.float32)


def _stray_group(_: dict[str, Any], weights: dict[str, Any]) -> None:
    weights["model.layers.0.mlp.up_proj.g_idx"][3] = 9


def _nan(_: dict[str, Any], weights: dict[str, Any]) -> None:
    weights["model.layers.1.mlp.up_proj.scales"][0, 0] = np.nan


def _group(**fields: Any) -> Change:
    return lambda config, _: config["config_groups"]["group_0"]["weights"].update(fields)


LIES: dict[str, tuple[str, Change, type[ProbewireError], str]] = {
    "other bits": ("gptq 4 bits", _set(bits=8), InvalidArgument, r"says that the weights have 8 bits .* packed with 4"),
    "other group": (
        "gptq 4 bits",
        _set(group_size=32),
        InvalidArgument,
        r"scales has shape \[6, 64\], and 4 bits in groups",
    ),
    "no packed tensors": ("gptq 4 bits", _plain, InvalidArgument, "no tensor is .*remove quantization_config"),
    "packed and plain": ("gptq 4 bits", _twice, InvalidArgument, r"up_proj is there packed \(.qweight\) and plain"),
    "no zeros": ("gptq 4 bits", _drop(".qzeros"), InvalidArgument, r"qzeros is missing, and .*qweight cannot be read"),
    "a group that is not": ("gptq 4 bits", _stray_group, InvalidArgument, r"g_idx names groups outside 0 … 3"),
    "not a number": (
        "gptq 4 bits",
        _nan,
        InvalidArgument,
        r"layers.1.mlp.up_proj.weight has values that F32 does not hold",
    ),
    "an order that is not there": (
        "gptq activation order",
        _drop(".g_idx"),
        InvalidArgument,
        r"\(desc_act\), and .*g_idx",
    ),
    "an order cut short": (
        "gptq 4 bits",
        _shorter(".g_idx"),
        InvalidArgument,
        "95 inputs of 4 bits, which fill no whole",
    ),
    "half of a matrix": (
        "gptq 4 bits",
        _drop("up_proj.qweight"),
        InvalidArgument,
        r"6 tensors belong to packed matrices",
    ),
    "a layout that is no word": ("gptq 4 bits", _set(checkpoint_format=0), Unsupported, "layout 0; gptq and gptq_v2"),
    "no order by group": (
        "int4 activation order",
        _drop("_g_idx"),
        InvalidArgument,
        r"\(actorder\), and .*weight_g_idx",
    ),
    "a scale that is missing": (
        "fp8 channels",
        _drop("up_proj.weight_scale"),
        InvalidArgument,
        "its weight_scale is missing",
    ),
    "half of an int4": ("int4 groups", _drop("up_proj.weight_scale"), InvalidArgument, "2 tensors belong to packed"),
    "five bits": ("gptq 4 bits", _set(bits=5, dynamic={}), InvalidArgument, "5 bits"),
    "bits in words": (
        "gptq 4 bits",
        _set(group_size="a few"),
        InvalidArgument,
        "cannot be converted as gptq: ValueError",
    ),
    "groups in a list": (
        "int4 groups",
        _set(config_groups=[3]),
        InvalidArgument,
        "cannot be converted as compressed-ten",
    ),
    "marlin": ("gptq 4 bits", _set(checkpoint_format="marlin"), Unsupported, "layout 'marlin'"),
    "awq that is gptq": ("gptq 4 bits", _set(quant_method="awq"), InvalidArgument, r"AWQ, gemm, as config.json says"),
    "gptq that is awq": ("awq", _set(quant_method="gptq", checkpoint_format="gptq"), InvalidArgument, "GPTQ"),
    "gemv": ("awq", _set(version="gemv"), Unsupported, "layout 'gemv'; gemm can be read"),
    "awq of 3 bits": ("awq", _set(bits=3), Unsupported, "with 3 bits; 4 can be read"),
    "awq without zeros": ("awq", _set(zero_point=False), Unsupported, "without zero points"),
    "awq of another group": ("awq", _set(group_size=32), InvalidArgument, r"qzeros is I32 of shape \[6, 8\]"),
    "awq that lacks scales": ("awq", _drop(".scales"), InvalidArgument, "scales is missing"),
    "int4 that is int8": ("int4 groups", _group(num_bits=8), InvalidArgument, r"weight_packed has shape \[64, 12\]"),
    "another group": (
        "int4 groups",
        _group(group_size=32),
        InvalidArgument,
        r"weight_scale has shape \[64, 6\], not \[64, 3\]",
    ),
    "asymmetric that is not": ("int4 groups", _group(symmetric=False), InvalidArgument, "weight_zero_point is missing"),
    "three bits": ("int4 groups", _group(num_bits=3), InvalidArgument, "int of 3 bits cannot be read"),
    "2:4 sparse": (
        "int4 groups",
        _set(format="marlin-24"),
        Unsupported,
        "format 'marlin-24' cannot be read; these can",
    ),
    "mxfp4": ("nvfp4", _set(format="mxfp4-pack-quantized"), Unsupported, "'mxfp4-pack-quantized'"),
    "rotated": ("int4 groups", _set(transform_config={"config_groups": {"R1": {}}}), Unsupported, "rotated besides"),
    "sparse": ("int4 groups", _set(sparsity_config={"format": "sparse-bitmask"}), Unsupported, "sparse besides"),
    "a float that is an int": ("fp8 channels", _group(type="int"), InvalidArgument, "weight is stored as F8_E4M3"),
    "no scales": ("fp8 channels", _drop(".weight_scale"), InvalidArgument, r"none is named ….weight_scale"),
    "no overall scale": ("nvfp4", _drop(".weight_global_scale"), InvalidArgument, "weight_global_scale, or"),
    "says nothing": ("gptq 4 bits", lambda config, _: config.clear(), InvalidArgument, "says nothing of how they were"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_refused(lie: str, plain: Path, tmp_path: Path, cache: Path) -> None:
    kind, change, error, words = LIES[lie]
    folder = tmp_path / "packed"
    pack_folder(plain, folder, json.loads(json.dumps(KINDS[kind][0])), packer(kind))
    stored = FileTensors([folder / "model.safetensors"])
    weights, config = (
        {name: stored.get(name) for name in stored.stored},
        json.loads((folder / "config.json").read_text()),
    )
    change(config["quantization_config"], weights)
    if not config["quantization_config"]:
        del config["quantization_config"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words) as caught:
        resolve_model(str(folder), cache_dir=cache)
    assert "Error: " not in caught.value.message or words.startswith("cannot be")
    assert [path.name for path in cache.glob("converted/*") if path.suffix != ".lock"] == [], "nothing is left behind"


def test_what_the_transformed_config_of_no_group_says(plain: Path, tmp_path: Path, cache: Path) -> None:
    """Recent writers put an empty transform_config and a dense sparsity_config into every file."""
    quantization = {**KINDS["int4 groups"][0], "transform_config": {}, "sparsity_config": {"format": "dense"}}
    meant = pack_folder(plain, tmp_path / "packed", quantization, packer("int4 groups"))
    found = load_file(resolve_model(str(tmp_path / "packed"), cache_dir=cache).folder / "model.safetensors")
    assert found.keys() == meant.keys()
