"""Loading: one dtype, our device messages, and what mlx-lm has to be told or mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from probewire.backends.mlx.backend import MlxBackend
from probewire.backends.mlx.load import load_model
from probewire.backends.model.limits import Limits
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.parity.harness import TOLERANCE, assert_same, every_site, generate, load, run, sequence
from tests.tiny_models import tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_one_dtype(dtype: str, tmp_path: Path) -> None:
    backend = load("mlx", tiny_checkpoint("llama", tmp_path), dtype=dtype)
    assert isinstance(backend, MlxBackend)
    expected = "float32" if dtype == "auto" else dtype
    assert backend.info.dtype == expected
    found = run(backend, TOKENS, every_site(backend))
    assert {str(c.values.dtype) for c in found.values()} == {expected}
    [made] = generate(backend, [sequence(backend, TOKENS, every_site(backend, "generate"), mode="generate", max_new=3)])
    assert {str(c.values.dtype) for c in made.captured.values()} == {expected}
    backend.close()


def test_auto_follows_the_config(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint("qwen3", tmp_path), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    loaded = load_model(folder, "auto")
    weights: Any = tree_flatten(loaded.model.parameters())
    assert {weight.dtype for _, weight in weights} == {mx.bfloat16}


@pytest.mark.parametrize("config_format", ["hub", "transformers5"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_equals_torch_whatever_wrote_the_config(family: str, config_format: str, tmp_path: Path) -> None:
    """The rope_theta trap; and a width whose square root bfloat16 cannot hold, which mlx-lm would round."""
    folder = tiny_checkpoint(family, tmp_path, hidden_size=40, config_format=config_format)
    one, other = load("torch", folder), load("mlx", folder)
    assert_same(run(other, TOKENS, every_site(other)), run(one, TOKENS, every_site(one)), TOLERANCE["float32"])
    other.close()


def test_experts_as_transformers_writes_them(tmp_path: Path) -> None:
    source, folder = tiny_checkpoint("gpt_oss", tmp_path), tmp_path / "copy"
    shutil.copytree(source, folder)
    for extra in ("model-mlx.safetensors", "model.safetensors.index.json"):
        (folder / extra).unlink()
    (folder / "transformers.safetensors").rename(folder / "model.safetensors")
    one, other = load("mlx", source), load("mlx", folder)
    assert_same(run(other, TOKENS, every_site(other)), run(one, TOKENS, every_site(one)), 0.0)
    one.close()
    other.close()


def test_context_is_the_models_own(tmp_path: Path) -> None:
    backend = load("mlx", tiny_checkpoint("llama", tmp_path), limits=Limits())
    assert backend.info.context_length == 512
    assert backend.engine is not None
    assert backend.engine.reason_not_to_fit(513)
    assert not backend.engine.reason_not_to_fit(512)
    backend.close()


def test_devices(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    arguments: dict[str, Any] = {"model_id": "tiny", "model_hash": "", "dtype": "auto", "limits": Limits()}
    with pytest.raises(InvalidArgument, match="auto, cpu and gpu"):
        MlxBackend(folder, device="cuda:0", **arguments)
    with pytest.raises(InvalidArgument, match=r"names several; a model on MLX lies on one .*torch backend"):
        MlxBackend(folder, device="cuda:0,cuda:1", **arguments)
    if not mx.is_available(mx.Device(mx.gpu)):
        with pytest.raises(FailedPrecondition, match="--device cpu"):
            MlxBackend(folder, device="gpu", **arguments)
