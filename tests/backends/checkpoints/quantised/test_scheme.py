"""What a config says of quantisation, and configs that lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.checkpoints.quantised.scheme import Layout, Scheme, scheme_of
from probewire.backends.model.weights import CheckpointWeights
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.parity.harness import load
from tests.quantised import both_of_fp8, both_of_mlx, both_of_mxfp4, with_config
from tests.tiny_models import tiny_checkpoint


def _told(folder: Path, config: dict[str, Any]) -> Scheme | None:
    (folder / "config.json").write_text(json.dumps(config))
    return scheme_of(folder)


def test_what_configs_say(tmp_path: Path) -> None:
    assert _told(tmp_path, {}) is None
    of_mlx = {
        "bits": 3,
        "group_size": 32,
        "model.layers.0.mlp.down_proj": {"bits": 6, "group_size": 64},
        "lm_head": False,
        "model.embed_tokens": {"bits": 8, "group_size": 32, "mode": "mxfp8"},
    }
    for name in ("quantization", "quantization_config"):
        found = _told(tmp_path, {name: of_mlx})
        assert found is not None
        assert (found.method, found.layout) == ("mlx", Layout(3, 32))
        assert found.layout_of("model.layers.0.mlp.down_proj") == Layout(6, 64)
        assert found.layout_of("lm_head") is None
        assert found.told("mlx") == (
            "mlx 3 bit, group 32; 1 layers 6 bit, group 64; 1 layers 8 bit, group 32, mxfp8; 1 layers plain"
        )
    nested = _told(tmp_path, {"text_config": {"quantization": {"mode": "nvfp4"}}})
    assert nested is not None
    assert nested.layout == Layout(4, 16, "nvfp4")
    fp8 = _told(tmp_path, {"quantization_config": {"quant_method": "fp8"}})
    assert fp8 is not None
    assert fp8.block == (128, 128)
    with pytest.raises(InvalidArgument, match=r"names no quant_method"):
        _told(tmp_path, {"quantization_config": {"load_in_4bit": True}})
    with pytest.raises(InvalidArgument, match=r"mode 'int4' is not one of affine"):
        _told(tmp_path, {"quantization": {"mode": "int4"}})


def _eight(config: dict[str, Any]) -> None:
    config["quantization"]["bits"] = config["quantization_config"]["bits"] = 4


def _both_halved(config: dict[str, Any]) -> None:
    """Four bits in groups of 64, where there are eight in groups of 32: as many words and scales for twice the width."""
    _eight(config)
    config["quantization"]["group_size"] = config["quantization_config"]["group_size"] = 64


def _one_plain(config: dict[str, Any]) -> None:
    config["quantization"]["model.layers.0.mlp.down_proj"] = False


def _not_said(config: dict[str, Any]) -> None:
    del config["quantization"], config["quantization_config"]


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (_eight, r"is not stored as config\.json says \(4 bit, group 32\)"),
        (_both_halved, r"is stored in 8 bit, group 32, and config\.json says 4 bit, group 64"),
        (_one_plain, r"down_proj\.weight is not stored as config\.json says \(plain\)"),
        (_not_said, r"holds \d+ weights that llama has no place for"),
    ],
)
def test_a_config_that_lies_about_mlx_weights_is_refused(
    lie: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder, _ = both_of_mlx("llama", tmp_path, 8)
    with pytest.raises(InvalidArgument, match=message):
        load("mlx", with_config(folder, tmp_path / "lie", lie))


_SAID: dict[str, dict[str, Any]] = {
    "mlx": {"quantization": {"bits": 4, "group_size": 64}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
}


@pytest.mark.parametrize(
    ("backend", "said"), [("mlx", "mlx"), ("mlx", "fp8"), ("mlx", "mxfp4"), ("torch", "fp8"), ("torch", "mxfp4")]
)
def test_plain_weights_that_are_said_to_be_quantised_are_refused(backend: str, said: str, tmp_path: Path) -> None:
    plain = tiny_checkpoint("llama", tmp_path)
    lie = with_config(plain, tmp_path / "lie", lambda config: config.update(_SAID[said]))
    with pytest.raises(InvalidArgument, match="no tensor of the checkpoint is"):
        load(backend, lie)


def test_fp8_of_another_grid_is_refused(tmp_path: Path) -> None:
    folder, _ = both_of_fp8("llama", tmp_path)

    def lie(config: dict[str, Any]) -> None:
        config["quantization_config"]["weight_block_size"] = [64, 64]

    other = with_config(folder, tmp_path / "lie", lie)
    for backend in ("torch", "mlx"):
        with pytest.raises(InvalidArgument, match=r"has no .*weight_scale_inv of \[\d, \d\] scales"):
            load(backend, other)


def test_fp8_that_torch_would_unpack_wrongly_is_refused_there(tmp_path: Path) -> None:
    """96 rows in blocks of 64: transformers would make two blocks of 48 of them."""
    folder, _ = both_of_fp8("llama", tmp_path, block=64)
    with pytest.raises(FailedPrecondition, match="blocks of 64 x 64 that do not divide it"):
        load("torch", folder)
    load("mlx", folder).close()


def test_rounded_activations_are_refused(tmp_path: Path) -> None:
    folder, _ = both_of_mlx("llama", tmp_path, 8)
    lie = with_config(folder, tmp_path / "lie", lambda config: config.update(quantize_activations=True))
    with pytest.raises(FailedPrecondition, match="rounds activations too"):
        load("mlx", lie)


METHODS = ("bitsandbytes", "torchao", "hqq")


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("method", METHODS)
def test_formats_of_other_packages_are_refused_with_the_fix(backend: str, method: str, tmp_path: Path) -> None:
    told: dict[str, Any] = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    told |= {"quant_type": {"default": "int8_weight_only"}} if method == "torchao" else {}
    folder = with_config(
        tiny_checkpoint("llama", tmp_path), tmp_path / method, lambda config: config.update(quantization_config=told)
    )
    fix = "--quantize int4 or int8"
    with pytest.raises(FailedPrecondition, match=rf"is quantised by {method}, which .*{fix}"):
        load(backend, folder)


def test_a_checkpoint_of_mlx_lms_is_named_on_torch(tmp_path: Path) -> None:
    folder, _ = both_of_mlx("llama", tmp_path, 4)
    with pytest.raises(
        FailedPrecondition, match=r"is mlx-lm's \(4 bit, group 32\), .* use the mlx backend \(MODEL@mlx\)"
    ):
        load("torch", folder)


def test_packed_weights_without_their_scales_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = both_of_mxfp4(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InvalidArgument, match="down_proj_blocks is not mxfp4 as config"):
        CheckpointWeights(folder)
