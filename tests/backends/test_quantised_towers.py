"""The text model inside a quantised wrapper: it loads as its text architecture, and every site and edit is that of its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx import nn
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from probewire.backends.checkpoints.at_sight import refuse_at_sight
from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Add
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from tests.backends.towers import TOKENS, bare_model, config_of, configured, copied, write_wrapper
from tests.parity.harness import assert_same, every_site, load, run

SAME = 1e-5
"""Error relative to a site's largest value, in float32."""
BLOCK, GROUP = 32, 32
FULL = {"layer_types": ["sliding_attention", "full_attention"]}
"""Of gemma3, whose pattern mlx-lm knows only with a full layer at the end of each period."""


def fp8_tower(whole: Path, own: Path, meant: Path) -> None:
    """Text projections in blocks of float8_e4m3fn beside plain weights of pictures; and the whole with their values."""
    packed, values = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, weight in load_file(whole / "model.safetensors").items():
        packed[name] = values[name] = weight.clone()
        if "vis" in name or not name.endswith("_proj.weight"):
            continue
        rows, columns = (n // BLOCK for n in weight.shape)
        blocks = weight.reshape(rows, BLOCK, columns, BLOCK)
        scales = blocks.abs().amax(dim=(1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        packed[name], packed[f"{name}_scale_inv"] = codes.reshape(weight.shape), scales
        values[name] = (codes.float() * scales[:, None, :, None]).reshape(weight.shape).contiguous()
    assert any(name.endswith("_scale_inv") for name in packed)
    save_file(packed, copied(whole, own) / "model.safetensors", metadata={"format": "pt"})
    save_file(values, copied(whole, meant) / "model.safetensors", metadata={"format": "pt"})
    stored = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    configured(own, quantization_config=stored)


def mlx_tower(whole: Path, own: Path, meant: Path) -> None:
    """All text matrices in four bits under the wrapper's names; and the text model alone with their values."""
    bare = bare_model(whole, meant)
    made: Any = load("mlx", bare)
    nn.quantize(made.model, group_size=GROUP, bits=4, class_predicate=lambda _, module: hasattr(module, "to_quantized"))
    packed: dict[str, Any] = dict(tree_flatten(made.model.parameters()))
    values = load_file(bare / "model.safetensors")
    for path, module in made.model.named_modules():
        if "scales" in module:
            value = mx.dequantize(module.weight, module.scales, module.biases, group_size=GROUP, bits=4)
            values[f"{path}.weight"] = torch.from_numpy(np.array(value.astype(mx.float32)))
    made.close()
    save_file(values, bare / "model.safetensors", metadata={"format": "pt"})
    inside = {f"language_model.{name}": value for name, value in packed.items()}
    inside["vision_tower.patch_embed.proj.weight"] = mx.zeros((4, 4))
    scheme = {"group_size": GROUP, "bits": 4}
    configured(copied(whole, own), **{**config_of(whole), "quantization": scheme, "quantization_config": scheme})
    mx.save_safetensors(str(own / "model.safetensors"), inside, {"format": "mlx"})


def _plans(backend: Backend) -> list[Plan]:
    """Every site read; and an edit at each of the stream's and the contributions' in the last layer but one, at logits."""
    vector = np.random.default_rng(0).normal(size=backend.info.d_model).astype(np.float32)
    sites = [site.name for site in backend.info.sites if "add" in site.edits and site.widths[-1] == len(vector)]
    layered = {site.name for site in backend.info.sites if site.layers is not None}
    names = [f"{name}.0" if name in layered else name for name in sites]
    assert {"resid_post.0", "attn_out.0", "mlp_out.0"} <= set(names)
    read = Hook("logits", capture=Capture())
    return [every_site(backend), *(Plan((Hook(name, edit=Add(vector)), read)) for name in names)]


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
@pytest.mark.parametrize(("name", "pack"), [("torch", fp8_tower), ("mlx", mlx_tower)])
def test_every_site_and_edit_is_that_of_its_values(
    name: str, pack: Callable[[Path, Path, Path], None], kind: str, tmp_path: Path
) -> None:
    whole, own, meant = (tmp_path / one for one in ("whole", "own", "meant"))
    for folder in (whole, own, meant):
        folder.mkdir()
    write_wrapper(kind, whole, **(FULL if kind == "gemma3" else {}))
    pack(whole, own, meant)
    refuse_at_sight(str(own), name)
    quantised, plain = load(name, own), load(name, meant)
    try:
        assert quantised.info.tower == kind
        assert quantised.info.architecture == plain.info.architecture
        assert quantised.info.quantization
        assert quantised.info.generate, quantised.info.generate_note
        assert {site.name: site.edits for site in quantised.info.sites} == {s.name: s.edits for s in plain.info.sites}
        for plan in _plans(plain):
            assert_same(run(quantised, TOKENS, plan), run(plain, TOKENS, plan), SAME)
    finally:
        quantised.close()
        plain.close()


def test_one_that_lies_is_refused(tmp_path: Path) -> None:
    whole = write_wrapper("gemma3", tmp_path, **FULL)
    configured(whole, quantization={"group_size": GROUP, "bits": 4})
    with pytest.raises(InvalidArgument, match="says that the weights are quantised"):
        refuse_at_sight(str(whole), "mlx")
