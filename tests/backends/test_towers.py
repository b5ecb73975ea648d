"""Text towers: what a text model inside a wrapper computes is what the whole wrapper computes from text, on both backends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probewire.backends.checkpoints.mlx_recipe import MLX_FAMILIES
from probewire.backends.checkpoints.shrunk import full_config, shrunk
from probewire.backends.checkpoints.text_config import PROVEN, text_config
from probewire.backends.model.weights import CheckpointWeights
from probewire.backends.torch.load import class_of
from probewire.backends.torch.tiny import write_tiny
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Plan
from tests.backends.derived import SIZES, write
from tests.backends.towers import (
    TOKENS,
    WRAPPERS,
    bare_model,
    error_of,
    logits,
    logits_of,
    write_wrapper,
)
from tests.parity.harness import TOLERANCE, generate, load, sequence
from tests.published_wrappers import PUBLISHED_WRAPPERS

EXACT = 2e-6
"""Two kernels of float32, relative to the largest logit; most are 1e-6 apart."""
NOT_ON_MLX = ("llama4",)
"""Whose attention in chunks mlx-lm has in its caches, which here are ours."""


def test_every_proven_wrapper_is_tried() -> None:
    assert set(WRAPPERS) == set(PROVEN)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_it_computes_what_the_whole_does(kind: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """The library's text model to the bit; ours within rounding; and what it offers is what the bare text model does."""
    folder, expected = wrapper(kind), logits_of(wrapper(kind), TOKENS)
    backend = load("torch", folder)
    assert not [name for name, _ in backend.model.named_modules() if "vision" in name or "audio" in name]  # pyright: ignore[reportAttributeAccessIssue] - of torch
    assert np.array_equal(_own_logits(folder), expected)
    if backend.info.site("logits") is not None:
        assert error_of(logits(backend), expected) <= EXACT
    assert backend.info.tower == kind
    assert f"the text model of a {kind} checkpoint" in repr(backend.info)
    bare = load("torch", bare_model(folder, tmp_path))
    assert bare.info.tower == ""
    for name in ("architecture", "family", "sites", "generate", "rules", "n_layers", "d_head", "vocab_size"):
        assert getattr(bare.info, name) == getattr(backend.info, name), name
    assert dict(bare.weight_names()) == dict(backend.weight_names())
    backend.close()
    bare.close()


def _own_logits(folder: Path) -> np.ndarray[Any, Any]:
    """As the library's class for the text model alone computes them, with the library's own attention."""
    tower = CheckpointWeights(folder).tower
    assert tower is not None
    config = text_config(folder)
    model: Any = class_of(config, tower).from_pretrained(
        folder,
        config=config,
        key_mapping={f"^{old}": new for old, new in tower.prefixes.items()},
        attn_implementation="eager",
        dtype=torch.float32,
    )
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


@pytest.mark.parametrize("kind", [kind for kind in WRAPPERS if kind not in NOT_ON_MLX])
def test_mlx_computes_it_too(kind: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    folder = wrapper(kind)
    if kind == "gemma3":  # whose pattern mlx-lm knows only with a full layer at the end of each period
        layers = ["sliding_attention", "full_attention"]
        folder = write_wrapper(kind, tmp_path, layer_types=layers)
    backend = load("mlx", folder)
    assert backend.info.tower == kind
    assert error_of(logits(backend), logits_of(folder, TOKENS)) <= TOLERANCE["float32"]
    assert backend.info.generate or backend.info.architecture not in MLX_FAMILIES, backend.info.generate_note
    backend.close()


@pytest.mark.parametrize("kind", NOT_ON_MLX)
def test_what_mlx_cannot_compute_is_refused(kind: str, wrapper: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidArgument, match=r"has no place for .* load it with the torch backend"):
        load("mlx", wrapper(kind))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in ("torch", "mlx") for kind in ("gemma3", "qwen2_5_vl")),
        *(("mlx", kind) for kind in ("gemma4", "lfm2_vl", "qwen3_5")),
    ],
)
def test_generation_is_the_whole_models(name: str, kind: str, tmp_path: Path) -> None:
    """Past gemma 3's window of 8 too."""
    more = {"layer_types": ["sliding_attention", "full_attention"]} if kind == "gemma3" else {}
    folder = write_wrapper(kind, tmp_path, **more)
    backend = load(name, folder)
    [made] = generate(backend, [sequence(backend, TOKENS[:12], Plan(()), mode="generate", max_new=6)])
    expected = logits_of(folder, made.tokens[:-1])[11:].argmax(-1)
    assert made.tokens[12:] == expected.tolist()
    backend.close()


def test_a_mistral_with_the_text_model_of_ministral3(tmp_path: Path) -> None:
    folder = write_wrapper("mistral3", tmp_path, model_type="ministral3")
    backend = load("torch", folder)
    assert (backend.info.architecture, backend.info.tower) == ("ministral3", "mistral3")
    assert error_of(logits(backend), logits_of(folder, TOKENS)) <= EXACT
    backend.close()


def test_a_gemma_that_reads_pictures_in_both_directions_is_causal_in_text(tmp_path: Path) -> None:
    folder = write_wrapper("gemma4", tmp_path, use_bidirectional_attention="vision")
    backend = load("torch", folder)
    assert error_of(logits(backend), logits_of(folder, TOKENS)) <= EXACT
    backend.close()


@pytest.mark.parametrize("model", PUBLISHED_WRAPPERS)
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_what_published_ones_say_of_themselves(name: str, model: str, tmp_path: Path) -> None:
    """Fields left out, flat ones, mrope: the text model's config is whole, and a small model of it loads and generates."""
    config, embedding = PUBLISHED_WRAPPERS[model]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({embedding: torch.zeros(1), "visual.x": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    full = full_config(tmp_path)
    said = config.get("text_config") or config
    for field in (
        "hidden_size",
        "num_hidden_layers",
        "head_dim",
        "vocab_size",
        "num_key_value_heads",
        "sliding_window",
    ):
        if field in said and not (field == "sliding_window" and said.get("use_sliding_window") is False):
            assert full[field] == said[field]
    assert "mrope" not in json.dumps(full["rope_parameters"])
    (tmp_path / "small").mkdir()
    write_tiny(tmp_path / "small", shrunk(full))
    backend = load(name, tmp_path / "small")
    assert backend.info.generate, backend.info.generate_note
    backend.close()


def test_a_text_model_is_no_tower(tmp_path: Path) -> None:
    backend = load("torch", write("llama", tmp_path, **SIZES))
    assert backend.info.tower == ""
    assert "tower" not in repr(backend.info)
    backend.close()
