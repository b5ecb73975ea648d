"""Two kernels of one model agree in 16 bits layer by layer; what is another model does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from probewire.backends.checkpoints import resolve_model
from probewire.backends.torch.trace import TOLERANCES, Layers, recorded, same_layers
from tests.backends.derived import derived
from tests.tiny_models import tiny_checkpoint

IDS = torch.tensor([[7, 99, 12, 200, 31, 64, 5, 17, 3, 120, 44, 8]])
DTYPES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module", params=["tiny", "default"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "default":
        return resolve_model("").folder
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=DTYPES, ids=str)
def opened(request: pytest.FixtureRequest, folder: Path) -> tuple[Any, Layers]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=request.param, attn_implementation="sdpa")
    with torch.no_grad(), recorded(model) as layers:
        model(IDS, use_cache=False)
    return model, layers


def same(model: Any, layers: Layers) -> bool:
    with torch.no_grad():
        return same_layers(model, layers, lambda: model(IDS, use_cache=False), TOLERANCES[model.dtype])


def test_another_kernel_is_the_same_model(opened: tuple[Any, Layers]) -> None:
    model, layers = opened
    assert len(layers) == model.config.num_hidden_layers
    model.set_attn_implementation("eager")
    assert same(model, layers)


def scaled(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 1.5


def shifted(model: Any) -> None:
    rotary: Any = model.model.rotary_emb
    stock = rotary.forward
    rotary.forward = lambda x, position_ids: stock(x, position_ids * 2)


def seeing_ahead(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
        stock = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, stock=stock, **kwargs: stock(
            *args, **{**kwargs, "attention_mask": None}
        )


@pytest.mark.parametrize("fault", [scaled, shifted, seeing_ahead])
def test_another_model_is_not(opened: tuple[Any, Layers], fault: Callable[[Any], None]) -> None:
    model, layers = opened
    fault(model)
    assert not same(model, layers)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_keeps_its_sites_in_16_bits(dtype: str, tmp_path: Path) -> None:
    """Three layers' roundings were more than one sum's tolerance, and every site inside attention was refused."""
    backend = derived(tiny_checkpoint("llama", tmp_path), dtype, "torch")
    assert backend.info.refused == {}
    assert backend.info.site("attn_probs") is not None
    backend.close()
