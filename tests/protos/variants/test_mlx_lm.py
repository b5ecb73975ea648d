"""mlx-lm's adapters, written and read, against mlx-lm's own layers: same logits."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model

from probewire.protos.errors import InvalidArgument
from probewire.protos.model_info import ModelInfo, WeightInfo
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant
from tests.tiny_models import tiny_checkpoint

IDS = [[5, 17, 200, 31, 8]]
LLAMA = {"w_q": ("self_attn.q_proj", 64, 64), "w_v": ("self_attn.v_proj", 64, 32), "w_down": ("mlp.down_proj", 96, 64)}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def model_of(folder: Path) -> Any:
    return load_model(folder)[0]


def logits(model: Any) -> Any:
    return np.array(model(mx.array(IDS)))


def parameters_of(model: Any) -> dict[str, Any]:
    return dict(tree_flatten(model.parameters()))


def weights_of(folder: Path) -> tuple[WeightInfo, ...]:
    """As a server on MLX tells them: a part of its table."""
    if folder.name.startswith("gpt2") or "gpt2" in str(folder):
        own = [
            WeightInfo(f"{name}.{n}", f"model.h.{n}.attn.c_attn", 64, 64)
            for n in range(3)
            for name in ("w_q", "w_k", "w_v")
        ]
        return (*own, *(WeightInfo(f"w_down.{n}", f"model.h.{n}.mlp.c_proj", 256, 64) for n in range(3)))
    return tuple(WeightInfo(f"{name}.{n}", f"model.layers.{n}.{path}", d_in, d_out)
                 for n in range(3) for name, (path, d_in, d_out) in LLAMA.items())  # fmt: skip


def info_of(folder: Path) -> ModelInfo:
    return ModelInfo(
        id="tiny", family="x", architecture="gpt2" if "gpt2" in str(folder) else "llama", backend="mlx", device="cpu", dtype="float32", attention="", model_hash="ab" * 32,
        n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_head=16, d_mlp=96, vocab_size=261, weights=weights_of(folder),
    )  # fmt: skip


def added(folder: Path, variant: Variant) -> Any:
    """Logits with each ΔW added to the weight itself."""
    model = model_of(folder)
    table = {weight.name: weight for weight in weights_of(folder)}
    parameters = parameters_of(model)
    changed: dict[str, Any] = {}
    for name, delta in variant.deltas.items():
        own = table[name].path if name in table else name.removeprefix("module:").replace("transformer.", "model.")
        path = f"{own}.weight"
        parts = [one for one in table.values() if one.path == own]
        start = sum(one.d_out for one in parts[: parts.index(table[name])]) if name in table else 0
        weight = changed.get(path, np.array(parameters[path]).copy())  # [d_out, d_in], gpt2's too: mlx-lm turns them
        weight[start : start + delta.d_out] += delta.dense().T
        changed[path] = weight
    model.load_weights([(path, mx.array(weight)) for path, weight in changed.items()], strict=False)
    return logits(model)


@pytest.mark.parametrize("config", [{"num_layers": 2, "scale": 20.0}, {"num_layers": -1, "scale": 0.5}])
def test_an_adapter_of_mlx_lm_is_read(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    model = model_of(base)
    names = ["attn.c_attn", "mlp.c_proj"] if "gpt2" in str(base) else ["self_attn.q_proj", "mlp.down_proj"]
    parameters = {"rank": 3, "scale": config["scale"], "dropout": 0.0, "keys": names}
    linear_to_lora_layers(model, config["num_layers"], parameters)
    mx.random.seed(1)
    drawn = [
        (name, mx.random.normal(array.shape) * 0.05)
        for name, array in parameters_of(model).items()
        if name.rpartition(".")[2] in ("lora_a", "lora_b")
    ]
    model.load_weights(drawn, strict=False)
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), dict(drawn))
    told = {"fine_tune_type": "lora", "num_layers": config["num_layers"], "lora_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))

    variant = Variant.load(tmp_path).bound(info_of(base))
    assert {int(re.findall(r"\d+", name)[0]) for name in variant.deltas} == (
        {1, 2} if config["num_layers"] == 2 else {0, 1, 2}
    )
    expected = logits(model)
    assert np.abs(expected - logits(model_of(base))).max() > 1e-3
    np.testing.assert_allclose(added(base, variant), expected, atol=1e-4 * np.abs(expected).max())


def test_ours_is_written_for_mlx_lm(base: Path, tmp_path: Path) -> None:
    rng, info = np.random.default_rng(3), info_of(base)
    deltas = {
        weight.name: Delta(
            rng.normal(size=(weight.d_in, 1 + n % 3)) * 0.1, rng.normal(size=(1 + n % 3, weight.d_out)) * 0.1
        )
        for n, weight in enumerate(info.weights)
        if n != 1
    }
    variant = Variant(deltas, manifest=Manifest(base=Base.of(info)))
    folder = variant.export(tmp_path / "adapter", "mlx-lm")
    model = load_adapters(model_of(base), str(folder))
    expected = added(base, variant)
    np.testing.assert_allclose(logits(model), expected, atol=1e-4 * np.abs(expected).max())
    again = Variant.load(folder).bound(info)
    np.testing.assert_allclose(added(base, again), expected, atol=1e-5 * np.abs(expected).max())


def folder_with(tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), {name: mx.array(value) for name, value in tensors.items()}
    )
    return tmp_path


GOOD = {"fine_tune_type": "lora", "lora_parameters": {"rank": 1, "scale": 2.0}}
FACTORS = {"model.layers.0.mlp.up_proj.lora_a": np.ones((4, 1)), "model.layers.0.mlp.up_proj.lora_b": np.ones((1, 3))}


def test_by_hand(tmp_path: Path) -> None:
    variant = Variant.load(folder_with(tmp_path, GOOD, FACTORS))
    assert variant.dense("module:model.layers.0.mlp.up_proj").tolist() == [[2.0] * 3] * 4


@pytest.mark.parametrize(
    ("config", "tensors", "why"),
    [
        (GOOD | {"fine_tune_type": "dora"}, FACTORS, "'dora'; 'lora' adds"),
        (GOOD | {"fine_tune_type": "full"}, FACTORS, "'full'; 'lora' adds"),
        (GOOD | {"lora_parameters": {"rank": 1, "alpha": 16}}, FACTORS, "no scale in lora_parameters"),
        (GOOD | {"lora_parameters": 3}, FACTORS, "no scale"),
        (GOOD, {**FACTORS, "model.layers.0.mlp.up_proj.m": np.ones(3)}, "no lora_a or lora_b"),
        (GOOD, {"model.embed_tokens.lora_a": np.ones((4, 1))}, "a tied model's head too"),
        (GOOD, dict(list(FACTORS.items())[:1]), "has only lora_a"),
        (GOOD, {name: value * 0 for name, value in FACTORS.items()}, "changes no module"),
    ],
)
def test_what_is_refused(tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Variant.load(folder_with(tmp_path, config, tensors))


def test_what_mlx_lm_has_no_place_for(tmp_path: Path) -> None:
    biased = Variant({"module:model.layers.0.x": Delta(np.ones((4, 1)), np.ones((1, 3)), np.ones(3))})
    with pytest.raises(InvalidArgument, match="have no biases"):
        biased.export(tmp_path / "x", "mlx-lm")
    lookup = Variant({"module:model.embed_tokens": Delta(np.ones((4, 1)), np.ones((1, 3)))})
    with pytest.raises(InvalidArgument, match="would change a tied head"):
        lookup.export(tmp_path / "x", "mlx-lm")
    assert replace(biased, manifest=Manifest(name="x")).hash == biased.hash
