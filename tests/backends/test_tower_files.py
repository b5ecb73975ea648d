"""Checkpoints of models that also see or hear, in all the ways that their files come, whole and broken."""

from __future__ import annotations

import json
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

from probewire.backends.model.footprint import footprint
from probewire.backends.model.limits import Limits
from probewire.backends.model.weights import CheckpointWeights
from probewire.protos.errors import InvalidArgument
from tests.backends.towers import (
    TOKENS,
    bare_model,
    config_of,
    configured,
    copied,
    error_of,
    logits,
    logits_of,
    rename_weights,
    write_wrapper,
)
from tests.parity.harness import TOLERANCE, load

OTHER_AGES: dict[str, tuple[str, dict[str, str]]] = {
    "gemma 3 as a later transformers saves it": (
        "gemma3",
        {
            "language_model.model.": "model.language_model.",
            "vision_tower.": "model.vision_tower.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
    ),
    "llava as a later transformers saves it": (
        "llava",
        {
            "language_model.lm_head.": "lm_head.",
            "language_model.model.": "model.language_model.",
            "vision_tower.": "model.vision_tower.",
            "multi_modal_projector.": "model.multi_modal_projector.",
        },
    ),
    "qwen2-vl as a later transformers saves it": (
        "qwen2_vl",
        {"model.": "model.language_model.", "visual.": "model.visual."},
    ),
    "qwen3-vl as mlx-vlm saves it": (
        "qwen3_vl",
        {
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.visual.": "vision_tower.",
        },
    ),
}


@pytest.mark.parametrize("age", OTHER_AGES)
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_names_of_another_age(age: str, name: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    kind, prefixes = OTHER_AGES[age]
    if kind == "gemma3":
        folder = write_wrapper(kind, tmp_path, layer_types=["sliding_attention", "full_attention"])
    else:
        folder = copied(wrapper(kind), tmp_path)
    expected, published = logits_of(folder, TOKENS), CheckpointWeights(folder).names()
    rename_weights(folder, prefixes)
    backend = load(name, folder)
    assert error_of(logits(backend), expected) <= TOLERANCE["float32"]
    assert dict(backend.weight_names()) == dict(published)
    backend.close()


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_experts_as_qwen3_vl_moe_was_published(name: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """Inputs first: the whole model's loader turns them, and so must the tower's."""
    folder = copied(wrapper("qwen3_vl_moe"), tmp_path)
    expected, weights = logits_of(folder, TOKENS), load_file(folder / "model.safetensors")
    turned = {name: value.mT.contiguous() if ".experts." in name else value for name, value in weights.items()}
    assert turned["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 64, 48)
    save_file(turned, folder / "model.safetensors", {"format": "pt"})
    assert np.array_equal(logits_of(folder, TOKENS), expected)
    backend = load(name, folder)
    assert error_of(logits(backend), expected) <= TOLERANCE["float32"]
    backend.close()


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_a_flat_config_of_the_first_qwen2_vl(name: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """Published with the text model's fields at the top, rope_scaling of type mrope among them."""
    folder = copied(wrapper("qwen2_vl"), tmp_path)
    expected, config = logits_of(folder, TOKENS), config_of(folder)
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {name: value for name, value in text.items() if name not in ("model_type", "dtype")}
    flat |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    (folder / "config.json").write_text(json.dumps({**flat, **config}))
    backend = load(name, folder)
    assert backend.info.architecture == "qwen2"
    assert error_of(logits(backend), expected) <= TOLERANCE["float32"]
    backend.close()


def test_a_head_that_nobody_has(wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """The text config of this one ties, and the whole model, which has no word on it, does not."""
    folder = _without(copied(wrapper("voxtral"), tmp_path), "language_model.lm_head.")
    configured(folder, text_config={**config_of(folder)["text_config"], "tie_word_embeddings": True})
    with pytest.raises(
        InvalidArgument, match=r"lacks 1 weights of its architecture, for example \['lm_head\.weight'\]"
    ):
        load("torch", folder)


@pytest.mark.parametrize(("tied", "whole_says"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_the_head_is_tied_as_the_whole_says(
    name: str, tied: bool, whole_says: bool, wrapper: Callable[[str], Path], tmp_path: Path
) -> None:
    """The text config of mistral3 may say otherwise, and does not count; a head in the file counts whoever ties."""
    config = config_of(wrapper("mistral3"))
    assert (config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"]) == (True, False)
    folder = copied(wrapper("mistral3"), tmp_path)
    if not tied:
        weights = load_file(folder / "model.safetensors")
        head = torch.randn(weights["language_model.model.embed_tokens.weight"].shape)
        save_file({**weights, "language_model.lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
        text = {**config["text_config"], "tie_word_embeddings": True}
        configured(folder, tie_word_embeddings=whole_says, text_config=text)
    backend = load(name, folder)
    assert error_of(logits(backend), logits_of(folder, TOKENS)) <= TOLERANCE["float32"]
    assert ("lm_head.weight" in backend.weight_names()) is not tied
    backend.close()


def test_a_tower_in_four_bits_as_mlx_vlm_saves_it(wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """Packed under the wrapper's names, with a width of its own for one module, beside weights of pictures."""
    whole, wide = wrapper("qwen2_5_vl"), "model.layers.0.mlp.up_proj"
    folders = [tmp_path / "bare", tmp_path / "tower"]
    for folder in folders:
        folder.mkdir()
    made: Any = load("mlx", bare_model(whole, folders[0]))
    own = {"group_size": 32, "bits": 8}

    def how(path: str, module: nn.Module) -> bool | dict[str, int]:
        return hasattr(module, "to_quantized") and (own if path == wide else True)

    nn.quantize(made.model, group_size=32, bits=4, class_predicate=how)
    packed: dict[str, Any] = dict(tree_flatten(made.model.parameters()))
    made.close()
    seen = {
        "vision_tower.patch_embed.proj.weight": mx.zeros((4, 4)),
        "vision_tower.merger.mlp.0.scales": mx.zeros((4, 4)),
    }
    inside = {f"language_model.{name}": value for name, value in packed.items()} | seen
    _save_packed(folders[0], packed, config_of(folders[0]), {wide: own})
    _save_packed(copied(whole, folders[1]), inside, config_of(whole), {f"language_model.{wide}": own})
    bare, tower = (load("mlx", folder) for folder in folders)
    assert error_of(logits(tower), logits(bare)) == 0
    assert error_of(logits(tower), logits_of(whole, TOKENS)) > 0.01, "four bits are not the whole"
    assert set(tower.weight_names()) == set(bare.weight_names())
    for backend in (bare, tower):
        backend.close()


def _save_packed(folder: Path, weights: dict[str, Any], config: dict[str, Any], wide: dict[str, Any]) -> None:
    scheme = {"group_size": 32, "bits": 4, **wide}
    configured(folder, **{**config, "quantization": scheme, "quantization_config": scheme})
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


def test_memory_counts_the_tower_alone(wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """And the cache by the weights' shapes, as a published text_config leaves out what is usual."""
    folder = copied(wrapper("llava"), tmp_path)
    text = {"model_type": "llama", "vocab_size": 261}
    configured(folder, text_config=text)
    weights = load_file(folder / "model.safetensors")
    held = sum(value.nbytes for name, value in weights.items() if name.startswith("language_model."))
    assert held < sum(value.nbytes for value in weights.values())
    need = footprint(folder, "auto", Limits(cache_tokens=1000))
    assert need.weights == held
    assert need.cache == 2 * 2 * 2 * 16 * 1000 * 4
    assert "model.vision_tower.pre_layrnorm.weight" not in CheckpointWeights(folder).names()


@pytest.mark.parametrize("name", ["torch", "mlx"])
@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (("language_model.model.layers.1.",), r"model\.layers\.1\."),
        (("language_model.model.norm",), r"model\.norm\.weight"),
        (("language_model.",), "the llava checkpoint holds no text model"),
    ],
)
def test_half_a_wrapper(
    name: str, gone: tuple[str, ...], message: str, wrapper: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _without(copied(wrapper("llava"), tmp_path), *gone)
    with pytest.raises(InvalidArgument, match=message):
        load(name, folder)


def _without(folder: Path, *beginnings: str) -> Path:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value.clone() for name, value in weights.items() if not name.startswith(beginnings)}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["torch", "mlx"])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("language_model.model.layers.0.self_attn.q_proj.bias", r"layers\.0\.self_attn\.q_proj\.bias"),
        ("language_model.model.layers.2.input_layernorm.weight", r"layers\.2\.input_layernorm"),
        ("adapters.0.weight", r"1 weights that are neither its text model's .* adapters\.0\.weight"),
        ("talker.model.embed_tokens.weight", r"holds 2 language models \(language_model\., talker\.\)"),
    ],
)
def test_weights_without_a_place(
    name: str, more: str, message: str, wrapper: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(wrapper("llava"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, more: torch.zeros(64)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidArgument, match=message):
        load(name, folder)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_a_config_without_its_text_part(name: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(wrapper("gemma3"), tmp_path)
    config = config_of(folder)
    del config["text_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InvalidArgument, match=r"gemma3 checkpoint says nothing of its text model: text_config is missing"
    ):
        load(name, folder)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_what_has_no_text_tower(name: str, tmp_path: Path) -> None:
    """A model that compares pictures and words, and one that hears and writes."""
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip: Any = AutoConfig.for_model(
        "clip", text_config=sizes, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=16
    )
    AutoModel.from_config(clip).save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match="the clip checkpoint holds no text model"):
        load(name, tmp_path)
    heard: Any = AutoConfig.for_model(
        "whisper", d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2
    )
    AutoModel.from_config(heard).save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument):
        load(name, tmp_path)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_what_was_not_compared_is_refused(name: str, wrapper: Callable[[str], Path], tmp_path: Path) -> None:
    """Aya's whole model leaves its text model's logit scale out: alone it would compute something else."""
    folder = configured(copied(wrapper("llava"), tmp_path), model_type="vipllava")
    with pytest.raises(InvalidArgument, match="a vipllava checkpoint by itself was not compared with the whole model"):
        load(name, folder)
