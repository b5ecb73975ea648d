"""Tiny quantised checkpoints beside the plain ones that they mean, made by the libraries that define the formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm import utils as mlx_lm_utils
from safetensors.torch import load_file, save_file

from probewire.backends.checkpoints.mlx_recipe import mlx_recipe
from probewire.backends.mlx.load import _classes_for
from tests.backends.derived import SIZES, write
from tests.tiny_models import FAMILIES, tiny_checkpoint

__all__ = ["GROUP", "both_of_fp8", "both_of_mlx", "both_of_mxfp4", "with_config"]

GROUP = 32
"""Divides every width of the tiny models."""
FP8_BLOCK = 32
_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def both_of_mlx(
    family: str, folder: Path, bits: int, mode: str = "affine", predicate: Any = None, dtype: str = "float32"
) -> tuple[Path, Path]:
    """What mlx-lm's converter writes, and the plain checkpoint of transformers' with the values that mlx gives back."""
    plain = tiny_checkpoint(family, folder) if family in FAMILIES else write(family, folder / family, **SIZES)
    own, meant = _new(folder, f"{plain.name}-{mode}{bits}"), _new(folder, f"{plain.name}-{mode}{bits}-meant")
    written = json.loads((plain / "config.json").read_text())
    recipe = mlx_recipe(written)
    utils: Any = mlx_lm_utils
    model, _ = utils.load_model(plain, lazy=True, model_config=recipe.config, get_model_classes=_classes_for(None))
    model.set_dtype(getattr(mx, dtype))
    model, config = utils.quantize_model(model, written, GROUP, bits, mode, predicate)
    utils.save_model(own, model)
    (own / "config.json").write_text(json.dumps(config))
    values = {path: _given_back(module) for path, module in model.named_modules() if "scales" in module}
    tensors = load_file(plain / "model.safetensors")
    for path, value in values.items():
        name = f"{path.removeprefix('model.') if family == 'gpt2' else path}.weight"
        turned = family == "gpt2" and "wte" not in name and "wpe" not in name
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value.T if turned else value))
    save_file(tensors, meant / "model.safetensors", metadata={"format": "pt"})
    (meant / "config.json").write_text(json.dumps(written))
    _copy_tokenizer(plain, own, meant)
    return own, meant


def _given_back(module: Any) -> Any:
    biases = module.biases if "biases" in module else None
    return np.array(
        mx.dequantize(
            module.weight, module.scales, biases, group_size=module.group_size, bits=module.bits, mode=module.mode
        ).astype(mx.float32)
    )


def both_of_mxfp4(folder: Path) -> tuple[Path, Path]:
    """gpt-oss with its experts as OpenAI publishes them, and with the values that the format's description gives them.

    32 values of an output share a scale: an eight-bit exponent, and four bits a value (sign, two of exponent, one of
    fraction); two values a byte, the first in its low half.
    """
    plain = tiny_checkpoint("gpt_oss", folder, intermediate_size=64)
    own, meant = _new(folder, "gpt_oss-mxfp4"), _new(folder, "gpt_oss-mxfp4-meant")
    tensors, values = load_file(plain / "transformers.safetensors"), dict[str, torch.Tensor]()
    packed = dict[str, torch.Tensor]()
    for name, weight in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = values[name] = weight
            continue
        groups = weight.swapaxes(-1, -2).unflatten(-1, (-1, 32))  # [expert, out, group, value]
        exponent = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
        codes = (groups / torch.exp2(exponent)[..., None]).unsqueeze(-1).sub(_E2M1).abs().argmin(-1)
        values[name] = (_E2M1[codes] * torch.exp2(exponent)[..., None]).flatten(-2).swapaxes(-1, -2).contiguous()
        codes = codes.to(torch.uint8)
        packed[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).contiguous()
        packed[f"{name}_scales"] = (exponent + 127).to(torch.uint8).contiguous()
    save_file(packed, own / "model.safetensors", metadata={"format": "pt"})
    save_file(values, meant / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((plain / "config.json").read_text())
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    stored = {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": kept}}
    (own / "config.json").write_text(json.dumps(written | stored))
    (meant / "config.json").write_text(json.dumps(written))
    _copy_tokenizer(plain, own, meant)
    return own, meant


def both_of_fp8(family: str, folder: Path, block: int = FP8_BLOCK) -> tuple[Path, Path]:
    """A checkpoint whose linear layers are stored in blocks of float8_e4m3fn, and with the values that torch gives back."""
    plain = tiny_checkpoint(family, folder)
    own, meant = _new(folder, f"{plain.name}-fp8-{block}"), _new(folder, f"{plain.name}-fp8-{block}-meant")
    packed, values = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, weight in load_file(plain / "model.safetensors").items():
        packed[name] = values[name] = weight
        if "_proj.weight" in name:
            scales = torch.stack(
                [
                    torch.stack([part.abs().max() / 448 for part in rows.split(block, dim=1)])
                    for rows in weight.split(block, dim=0)
                ]
            )
            spread = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(weight), : weight.shape[1]]
            packed[name], packed[f"{name}_scale_inv"] = (weight / spread).to(torch.float8_e4m3fn), scales
            values[name] = packed[name].float() * spread
    save_file(packed, own / "model.safetensors", metadata={"format": "pt"})
    save_file(values, meant / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((plain / "config.json").read_text())
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    (own / "config.json").write_text(json.dumps(written | {"quantization_config": stored}))
    (meant / "config.json").write_text(json.dumps(written))
    _copy_tokenizer(plain, own, meant)
    return own, meant


def with_config(folder: Path, new: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The same weights under another config."""
    new.mkdir()
    for file in folder.iterdir():
        (new / file.name).hardlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (new / "config.json").unlink()
    (new / "config.json").write_text(json.dumps(config))
    return new


def _new(folder: Path, name: str) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    return made


def _copy_tokenizer(plain: Path, *folders: Path) -> None:
    for file in plain.glob("tokenizer*"):
        for folder in folders:
            (folder / file.name).write_bytes(file.read_bytes())
